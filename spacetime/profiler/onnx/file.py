"""An ONNX file, checked, as a `Graph`: the one place that knows the onnx package. Used by profiler/onnx/ only.

The file may come from anywhere: nothing outside its folder is read, nothing is allocated before its size was
compared with the memory there is, and everything unknown in it is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spacetime.errors import CaptureError, OptionError
from spacetime.profiler.memory import available_bytes
from spacetime.profiler.onnx.external import check_locations, read_tensor
from spacetime.profiler.onnx.graph import Graph, Input, Node, Numbers, Unsupported, Value, constant
from spacetime.profiler.onnx.operators.shapes import torch_dtype
from spacetime.profiler.onnx.registry import find

MIN_OPSET = 13
MAX_PROTOBUF_BYTES = 2**31 - 1
_DOMAINS = ("", "ai.onnx")


def onnx_package() -> Any:
    """The onnx package, which is an extra."""
    try:
        import onnx
        import onnx.checker
        import onnx.inliner
    except ImportError as error:
        raise OptionError(
            "reading an ONNX file needs the onnx package",
            "it is not installed here",
            "pip install spacetime-gpu[onnx]",
        ) from error
    return onnx


def read_proto(path: Path) -> Any:
    """The parsed file, without its external data."""
    onnx = onnx_package()
    _check_file(path)
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose home differs between its versions
        raise _not_onnx(path, f"protobuf: {str(error).strip() or type(error).__name__}") from error
    if not proto.ir_version or not proto.HasField("graph") or not proto.opset_import:
        raise _not_onnx(path, "it has no IR version, no graph, or no opset")
    try:
        return onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    except Exception as error:  # the inliner has errors of its own: for functions that call themselves, for one
        facts = f"onnx: {str(error).strip() or type(error).__name__}"
        raise CaptureError(f"{path}: its local functions cannot be inlined", facts, "export it again") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        problem = "it is a folder" if path.is_dir() else "there is no such file"
        raise OptionError(f"cannot read {path}", problem, "give the path of an .onnx file")
    size = path.stat().st_size
    if size > MAX_PROTOBUF_BYTES:
        raise OptionError(
            f"cannot read {path}",
            f"it has {size / 2**30:.1f} GiB; protobuf reads up to 2 GiB",
            "save its weights as external data: onnx.save_model(model, path, save_as_external_data=True)",
        )
    # The bytes, the parsed message and the weights are in memory at the same time.
    check_memory(path, 3 * size)


def check_memory(path: Path, needed_bytes: int) -> None:
    available = available_bytes()
    if needed_bytes > available:
        raise OptionError(
            f"{path} does not fit in memory",
            f"loading it takes {needed_bytes / 2**30:.2f} GiB, {available / 2**30:.2f} GiB are free",
            "use a machine with more memory, or a smaller model",
        )


def _not_onnx(path: Path, problem: str) -> OptionError:
    return OptionError(
        f"{path} is truncated or no ONNX model",
        f"{path.stat().st_size} bytes; {problem}",
        "copy or export the file again; torch.onnx.export(module, inputs, path) writes one",
    )


def read_graph(path: Path, proto: Any, sizes: Mapping[str, int]) -> Graph:
    """The graph of a parsed file; `sizes` gives every dynamic dimension but the rows."""
    opset = _opset(path, proto)
    graph = proto.graph
    opsets = {entry.domain: int(entry.version) for entry in proto.opset_import} | dict.fromkeys(_DOMAINS, opset)
    nodes = [_node(node, opsets, index) for index, node in enumerate(graph.node)]
    nodes = _without_unread(nodes, {output.name for output in graph.output})
    needed = _needed(nodes, {output.name for output in graph.output})
    _check_supported(path, [node for node in nodes if id(node) in needed], graph)
    _check_nodes(path, proto, [written for node, written in zip(nodes, graph.node, strict=True) if id(node) in needed])
    read = {output.name for output in graph.output}.union(*(node.inputs for node in nodes if id(node) in needed))
    tensors = [(name, tensor) for name, tensor in _tensors(graph) if name in read]
    check_memory(path, check_locations(path, [tensor for _, tensor in tensors]))
    constants: dict[str, Value] = {name: _constant(path, name, tensor) for name, tensor in tensors}
    constants |= {node.outputs[0]: _plain_constant(node) for node in nodes if _is_plain_constant(node)}
    nodes = [_with_values(path, node) for node in nodes if node.op != "Constant" and id(node) in needed]
    initialised = {tensor.name for tensor in graph.initializer}
    inputs, fixed_rows = _inputs(path, graph, sizes, initialised)
    found = Graph(inputs, tuple(output.name for output in graph.output), tuple(nodes), constants, fixed_rows)
    _check_defined(path, found)
    return found


def _opset(path: Path, proto: Any) -> int:
    defs = onnx_package().defs
    found = {entry.domain: entry.version for entry in proto.opset_import}
    opset = next((int(found[domain]) for domain in _DOMAINS if domain in found), 0)
    newest = defs.onnx_opset_version()
    if opset < MIN_OPSET:
        raise CaptureError(
            f"{path} uses opset {opset}, which is too old",
            f"the importer reads {MIN_OPSET} to {newest}",
            "export it again, or convert it: onnx.version_converter.convert_version(model, 17)",
        )
    if opset > newest:
        raise CaptureError(
            f"{path} uses opset {opset}, which is too new",
            f"the installed onnx {onnx_package().__version__} knows up to {newest}",
            "pip install --upgrade onnx, or export with a lower opset_version",
        )
    return opset


# -- nodes ----------------------------------------------------------------------------------------------------------


def _node(proto: Any, opsets: Mapping[str, int], index: int) -> Node:
    onnx = onnx_package()
    domain = "" if proto.domain in _DOMAINS else proto.domain
    opset = opsets.get(domain, opsets[""])
    version = 0
    if not domain and onnx.defs.has(proto.op_type, opset):
        version = onnx.defs.get_schema(proto.op_type, opset).since_version
    return Node(
        op=proto.op_type,
        name=proto.name or f"node {index}",
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={attribute.name: _attribute(attribute) for attribute in proto.attribute},
        opset=opset,
        version=version,
        domain=domain,
    )


def _attribute(proto: Any) -> Any:
    """Strings as str; tensors as they are in the file; graphs as what they are: unsupported."""
    value = onnx_package().helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Iterable) and not hasattr(value, "DESCRIPTOR"):
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in value]
    return value


def _without_unread(nodes: list[Node], wanted: set[str]) -> list[Node]:
    """Further outputs that nobody reads (masks, indices, deviations) are left out: many are not implemented."""
    read = wanted | {name for node in nodes for name in node.inputs}
    return [
        replace(node, outputs=(*node.outputs[:1], *(name if name in read else "" for name in node.outputs[1:])))
        for node in nodes
    ]


def _needed(nodes: list[Node], wanted: set[str]) -> set[int]:
    """The nodes that an output depends on, by identity."""
    found: set[int] = set()
    wanted = set(wanted)
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            found.add(id(node))
            wanted.update(node.inputs)
    return found


def _check_supported(path: Path, nodes: list[Node], graph: Any) -> None:
    wrong = [node for node in nodes if node.op != "Constant" and find(node) is None]
    wrong += [node for node in nodes if node.op == "Constant" and not _is_constant_known(node)]
    problems = [f"{node.domain + '.' if node.domain else ''}{node}" for node in wrong]
    problems += [f"sparse initializer {sparse.values.name!r}" for sparse in graph.sparse_initializer]
    if problems:
        raise CaptureError(
            f"{path} cannot be imported",
            f"{len(problems)} not supported: {'; '.join(problems)}",
            "export it without them, or give the PyTorch module instead of the file",
        )


def _check_nodes(path: Path, proto: Any, nodes: Iterable[Any]) -> None:
    """Numbers of inputs, names and types of attributes: what is wrong there would be overlooked, or fail obscurely."""
    checker = onnx_package().checker
    context = checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    for index, node in enumerate(nodes):
        if node.op_type == "Constant":  # checking copies, and these may be the weights
            continue
        try:
            checker.check_node(node, context)
        except checker.ValidationError as error:
            facts = str(error).strip().splitlines()[0]
            if "is deprecated in" in facts:  # it means what it meant, and is imported if we know it
                continue
            what = f"{path}: {node.op_type} {node.name or f'number {index}'!r} is not what ONNX defines"
            raise CaptureError(what, facts, "export it again") from error


def _is_constant_known(node: Node) -> bool:
    return "value" in node.attributes or _is_plain_constant(node)


def _is_plain_constant(node: Node) -> bool:
    names = ("value_int", "value_ints", "value_float", "value_floats")
    return node.op == "Constant" and any(name in node.attributes for name in names)


def _plain_constant(node: Node) -> Value:
    ((name, value),) = node.attributes.items()
    dtype = torch.float32 if "float" in name else torch.int64
    return Numbers(tuple(value), dtype) if isinstance(value, list) else Numbers((value,), dtype, is_scalar=True)


def _with_values(path: Path, node: Node) -> Node:
    """Attributes that are tensors, read."""
    values = {name: value for name, value in node.attributes.items() if hasattr(value, "data_type")}
    if not values:
        return node
    check_locations(path, values.values())
    read = {name: _read(path, f"{node}, {name}", tensor) for name, tensor in values.items()}
    return replace(node, attributes={**node.attributes, **read})


# -- constants ------------------------------------------------------------------------------------------------------


def _tensors(graph: Any) -> list[tuple[str, Any]]:
    found = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            found += [(node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value"]
    return found


def _constant(path: Path, name: str, tensor: Any) -> Value:
    return constant(_read(path, f"the constant {name!r}", tensor))


def _read(path: Path, what: str, tensor: Any) -> torch.Tensor:
    try:
        return read_tensor(path, tensor)
    except (Unsupported, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, (OptionError, CaptureError)):
            raise
        raise CaptureError(f"{path}: {what} cannot be read", str(error), "copy or export the file again") from error


# -- inputs ---------------------------------------------------------------------------------------------------------


def _inputs(path: Path, graph: Any, sizes: Mapping[str, int], known: set[str]) -> tuple[tuple[Input, ...], int | None]:
    protos = [value for value in graph.input if value.name not in known]
    if not protos:
        raise CaptureError(
            f"{path} has no inputs", "a tenant answers requests, which come as tensors with rows", "export it again"
        )
    shapes = {proto.name: _declared(path, proto) for proto in protos}
    unknown = sorted(set(sizes) - {key for shape in shapes.values() for key in shape if isinstance(key, str)})
    if unknown:
        dynamic = sorted({key for shape in shapes.values() for key in shape[1:] if isinstance(key, str)})
        raise OptionError(
            f"{path} has no dynamic dimension {unknown[0]!r}", f"its dimensions: {', '.join(dynamic)}", "use these"
        )
    shapes = {name: (shape[0], *(_resolve(key, sizes) for key in shape[1:])) for name, shape in shapes.items()}
    _check_static(path, shapes)
    inputs = tuple(
        Input(proto.name, _input_dtype(path, proto), tuple(map(int, shapes[proto.name][1:]))) for proto in protos
    )
    return inputs, _fixed_rows(path, {name: shape[0] for name, shape in shapes.items()})


def _declared(path: Path, proto: Any) -> tuple[int | str, ...]:
    """Every dimension: its size, the name of its size, or `input:index`. Some exporters write 0 or -1 for unknown."""
    kind = proto.type.tensor_type
    if not proto.type.HasField("tensor_type") or not kind.HasField("shape") or not kind.shape.dim:
        raise CaptureError(
            f"{path}: input {proto.name!r} has no row dimension",
            "it is a scalar, no tensor, or of unknown rank",
            "export it with inputs whose first dimension are the rows of a batch",
        )
    return tuple(
        dim.dim_value if dim.dim_value > 0 else (dim.dim_param or f"{proto.name}:{index}")
        for index, dim in enumerate(kind.shape.dim)
    )


def _resolve(key: int | str, sizes: Mapping[str, int]) -> int | str:
    return sizes.get(key, key) if isinstance(key, str) else key


def _check_static(path: Path, shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    dynamic = {key: name for name, shape in shapes.items() for key in shape[1:] if isinstance(key, str)}
    if dynamic:
        key, name = next(iter(dynamic.items()))
        raise CaptureError(
            f"{path} has dynamic dimensions beside the rows",
            f"input {name!r} has the shape {list(shapes[name])}; dynamic: {', '.join(dynamic)}",
            f"give them sizes: --size {key}=128, or sizes={{{key!r}: 128}}; only the first dimension may stay dynamic",
        )


def _fixed_rows(path: Path, firsts: Mapping[str, int | str]) -> int | None:
    fixed = {name: first for name, first in firsts.items() if isinstance(first, int)}
    if not fixed:
        return None
    if len(fixed) != len(firsts) or len(set(fixed.values())) != 1:
        name = next(iter(fixed))
        raise CaptureError(
            f"{path}: the inputs do not share their first dimension as rows",
            f"input {name!r} starts with {fixed[name]}; all: {dict(firsts)}",
            "export it with the rows first in every input, all of them dynamic",
        )
    return next(iter(fixed.values()))


def _input_dtype(path: Path, proto: Any) -> torch.dtype:
    try:
        return torch_dtype(proto.type.tensor_type.elem_type)
    except Unsupported as error:
        raise CaptureError(f"{path}: input {proto.name!r}", str(error), "export it with another type") from error


def _check_defined(path: Path, graph: Graph) -> None:
    known = {"", *(each.name for each in graph.inputs), *graph.constants}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise CaptureError(
                f"{path} is inconsistent",
                f"{node} reads {missing[0]!r}, which nothing before it writes",
                "export it again",
            )
        twice = [name for name in node.outputs if name and name in known]
        if twice:
            raise CaptureError(f"{path} is inconsistent", f"{node} writes {twice[0]!r} again", "export it again")
        known.update(node.outputs)
    for name in graph.outputs:
        if name not in known:
            raise CaptureError(f"{path} is inconsistent", f"nothing writes the output {name!r}", "export it again")
    if not graph.outputs:
        raise CaptureError(f"{path} has no outputs", "there is nothing to compute", "export it again")
