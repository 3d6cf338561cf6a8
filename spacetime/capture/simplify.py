"""Rewrites of an exported graph that keep its results and let rows be followed. Used by capture/ only."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_LINEAR = torch.ops.aten.linear.default
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def unmerge_linears(graph: fx.Graph) -> None:
    """linear(x.view(time * rows, d)).view(time, rows, e) -> linear(x.view(time, rows, d)).

    nn.MultiheadAttention merges rows into another dimension around its projections; in the merged
    dimension the rows of one tenant are no longer neighbours.
    """
    for node in list(graph.nodes):
        if node.target is not _LINEAR or node.args[0].target not in _VIEWS or len(node.users) != 1:
            continue
        (reader,) = node.users
        if reader.target in _VIEWS and _width(reader) == _width(node):
            _unmerge(graph, node, reader)


def _width(node: fx.Node) -> Any:
    return node.meta["val"].shape[-1]


def _unmerge(graph: fx.Graph, node: fx.Node, reader: fx.Node) -> None:
    merged: Any = node.args[0]
    sizes: Any = reader.args[1]
    with graph.inserting_before(reader):
        apart = graph.call_function(_VIEWS[0], (merged.args[0], [*sizes[:-1], _width(merged)]))
        apart.meta["val"] = merged.meta["val"].new_empty([*reader.meta["val"].shape[:-1], _width(merged)])
        linear = graph.call_function(_LINEAR, (apart, *node.args[1:]), node.kwargs)
        linear.meta = {**node.meta, "val": reader.meta["val"]}
    reader.replace_all_uses_with(linear)
    for dead in (reader, node, merged):
        if not dead.users:
            graph.erase_node(dead)
