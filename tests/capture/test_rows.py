"""The proof of independent rows: it finds every way of mixing them, and accepts every member of the zoo."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spacetime.capture.export import MAX_ROWS, Unfusible
from spacetime.zoo import STANDARD
from tests.capture.sketches import VECTOR, Case, Part, count, draw, sketch
from tests.capture.tenants import capture, leaves_of, zoo_capture
from tests.slow import LONG_EXPORTS, mostly

EMBEDDING: dict[str, Part] = {"table": lambda: nn.Embedding(100, 8)}
ATTENTION: dict[str, Part] = {"attention": lambda: nn.MultiheadAttention(8, 2)}
ONE_FEATURE: dict[str, Part] = {"linear": lambda: nn.Linear(8, 1)}

MIXING = [
    Case("mean over the batch", lambda m, x: x - x.mean(0), reason="mean"),
    Case("sum of everything", lambda m, x: x / x.sum(), reason="sum"),
    Case("variance over all dimensions", lambda m, x: x / x.var(), reason="var"),
    Case("gram matrix", lambda m, x: x @ x.t() @ x, VECTOR, reason="rows"),
    Case("einsum over the batch", lambda m, x: x @ torch.einsum("bi,bj->ij", x, x), VECTOR, reason="bmm"),
    Case("softmax over rows", lambda m, x: x.softmax(0), reason="softmax"),
    Case("cumulated rows", lambda m, x: x.cumsum(0), reason="cumsum"),
    Case("minus the first row", lambda m, x: x - x[0], reason="select"),
    Case("minus the first row, kept as a slice", lambda m, x: x - x[:1], reason="slice"),
    Case("flipped rows", lambda m, x: x.flip(0), reason="flip"),
    Case("sorted rows", lambda m, x: x.sort(0).values, reason="sort"),
    Case("best rows", lambda m, x: x - x.topk(1, 0).values.squeeze(0), reason="topk"),
    Case("rolled rows", lambda m, x: x.roll(1, 0), reason="roll"),
    Case("rolled entries", lambda m, x: x.roll(1), reason="roll"),
    Case("norm over rows", lambda m, x: F.normalize(x, dim=0), reason="norm"),
    Case("largest of all", lambda m, x: x / x.amax(), reason="amax"),
    Case("steps before rows", lambda m, x: x.transpose(0, 1).reshape(-1, 6, 8), reason="rows"),
    Case("rows behind steps", lambda m, x: x.transpose(0, 1).reshape(-1, 8).view(x.shape), reason="view|reshape|clone"),
    Case("scaled by the batch size", lambda m, x: x / count(x), reason="div"),
    Case("a tensor of the batch size", lambda m, x: x / torch.full((count(x), 1, 1), count(x)), reason="full"),
    Case("a new tensor of the batch size", lambda m, x: x + x.new_full((count(x), 1, 1), count(x)), reason="new_full"),
    Case("row numbers", lambda m, x: x + torch.arange(count(x))[:, None, None], reason="add"),
    Case(
        "row numbers embedded",
        lambda m, x: x + m.table(torch.arange(count(x)))[:, None],
        parts=EMBEDDING,
        reason="embedding",
    ),
    Case("the number of a row", lambda m, x: (x, torch.arange(count(x))), reason="position of a row"),
    Case("row r's entry r", lambda m, x: x[torch.arange(count(x)), torch.arange(count(x))], reason="index"),
    Case(
        "row numbers in another order",
        lambda m, x: x[torch.arange(count(x))[None].expand(2, count(x)).reshape(-1)].view(-1, 2, 8),
        VECTOR,
        reason="position of a row|across rows",
    ),
    Case("rows by a mask", lambda m, x: x[x[:, 0] > 0], VECTOR, reason="torch.export refused|index|multiple"),
    Case("rows by index", lambda m, x: x[torch.tensor([1, 0])], reason="index"),
    Case("rows selected", lambda m, x: x.index_select(0, torch.tensor([1, 0])), reason="index_select"),
    Case("rows gathered", lambda m, x: x.gather(0, (x > 0).long()), VECTOR, reason="gather"),
    Case(
        "rows paired with others",
        lambda m, x, y: x.view(-1, 4).gather(1, (y > 0).long()),
        ((8,), (4,)),
        reason="gather",
    ),
    Case("the first row written", lambda m, x: x.scatter(1, torch.tensor([[0]]), 5.0), VECTOR, reason="constant"),
    Case(
        "row r of a table",
        lambda m, x: m.w.gather(1, (x > 0).long()),
        VECTOR,
        {"w": (MAX_ROWS + 1, 8)},
        reason="constant",
    ),
    Case(
        "own rows, in an order of the tenant's",
        lambda m, x: x[torch.arange(count(x))[:, None], m.w.argsort()],
        parts={"w": (6,)},
        reason="position of a row",
    ),
    Case("a number out of a weight", lambda m, x: x * m.w.item(), VECTOR, {"w": (1,)}, "takes a number"),
    Case("a number out of the rows", lambda m, x: x * x.max().item(), VECTOR, reason="max|takes a number"),
    Case(
        "pooling along the rows",
        lambda m, x: F.max_pool2d(x[None], 3, 1, 1)[0],
        VECTOR,
        reason="max_pool2d",
    ),
    Case("the first row replaced", lambda m, x: x.select_scatter(torch.ones(8), 0, 0), VECTOR, reason="select_scatter"),
    Case(
        "products of rows as one batch",
        lambda m, x: torch.baddbmm(torch.zeros(1), x[None], m.w)[0],
        VECTOR,
        {"w": (1, 8, 8)},
        reason="baddbmm",
    ),
    Case("shuffled rows", lambda m, x: x[torch.randperm(count(x))], reason="randperm"),
    Case("rows behind rows", lambda m, x: torch.cat([x, x])[: count(x)], reason="cat"),
    Case("a row in front", lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 0))[:-1], reason="pad"),
    Case("rows behind and in front", lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1))[1:-1], reason="pad"),
    Case("rows minus their neighbours", lambda m, x: x.diff(dim=0, prepend=x[:1]), reason="slice|diff"),
    Case("rows in windows of one", lambda m, x: x.unfold(0, 1, 1).squeeze(-1), VECTOR, reason="unfold"),
    Case("repeated rows", lambda m, x: x.repeat(2, 1, 1).view(-1, 2, 6, 8).sum(1), reason="repeat"),
    Case(
        "rows expanded to twice as many",
        lambda m, x: x.expand(2, *x.shape).reshape(-1, 2, 6, 8).sum(1),
        reason="view|reshape|clone|fixes the number of rows",
    ),
    Case("half of the rows", lambda m, x: x.view(-1, 2, 6, 8)[:, 0], reason="torch.export refused|view|multiple"),
    Case(
        "batch norm on the batch",
        lambda m, x: F.batch_norm(x, None, None, training=True),
        VECTOR,
        reason="batch_norm",
    ),
    Case("dropout that is on", lambda m, x: F.dropout(x, training=True), reason="dropout"),
    Case("weights under dropout", lambda m, x: x * F.dropout(m.w, training=True), parts={"w": (8,)}, reason="dropout"),
    Case(
        "attention under dropout",
        lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        reason="scaled_dot_product_attention",
    ),
    Case("noise", lambda m, x: x + torch.rand(8), reason="rand"),
    Case("noise for every row", lambda m, x: x + torch.rand(count(x), 1, 1), reason="rand"),
    Case("noise like the rows", lambda m, x: x + torch.randn_like(x), reason="randn_like"),
    Case("memory as it is", lambda m, x: torch.empty_like(x), reason="memory as it is"),
    Case("kernels from the input", lambda m, x: F.conv1d(x, x[:, :, :1].reshape(-1, 6, 1)), reason="conv1d"),
    Case("weights from the input", lambda m, x: F.linear(x[:, 0], x[:, 1]), reason="linear"),
    Case(
        "attention over the batch", lambda m, x: F.scaled_dot_product_attention(x, x, x), VECTOR, reason="rows|attends"
    ),
    Case("attention, batch taken for steps", lambda m, x: m.attention(x, x, x)[0], parts=ATTENTION, reason="rows"),
    Case(
        "convolution along the rows",
        lambda m, x: F.avg_pool1d(x.t()[None], 3, 1, 1)[0].t(),
        VECTOR,
        reason="avg_pool1d",
    ),
    Case(
        "resizing along the rows",
        lambda m, x: F.interpolate(x.t()[None], scale_factor=2),
        VECTOR,
        reason="upsample|multiple|merges",
    ),
    Case("layer norm over rows", lambda m, x: x - x.t().softmax(-1).t(), VECTOR, reason="softmax"),
    Case("triangle of rows", lambda m, x: x.tril(), VECTOR, reason="tril"),
    Case("rows lost for a single row", lambda m, x: m.linear(x).squeeze(), VECTOR, ONE_FEATURE, "squeeze"),
    Case("nothing of the inputs", lambda m, x: m.w * 2, parts={"w": (8,)}, reason="does not carry"),
    Case("rows merged with steps", lambda m, x: x.reshape(-1, 8), reason="merges"),
    Case("an operation that nobody knows", lambda m, x: torch.cdist(x, x), reason="not known"),
]


@pytest.mark.parametrize("case", MIXING, ids=str)
def test_rows_that_meet_are_refused_with_the_operation(case: Case) -> None:
    module = sketch(case.function, case.parts)
    leaves_of(module, draw(case.rows, 4, seed=0))  # it runs: what is refused is not a mistake of the sketch
    with pytest.raises(Unfusible, match=case.reason):
        capture(module, draw(case.rows, 2, seed=0))


APART = [
    Case("a switch that is off", lambda m, x: F.rrelu(x) + F.dropout(x, training=False)),
    Case("own rows, in an order of the code's", lambda m, x: x[torch.arange(count(x))[:, None], torch.tensor([1, 0])]),
    Case("a step of every row replaced", lambda m, x: x.transpose(0, 1).select_scatter(x[:, 3], 0, 0).transpose(0, 1)),
    Case("products added", lambda m, x: torch.baddbmm(x[..., :6], x, x.mT, beta=0.5)),
    Case("steps padded, rows named", lambda m, x: F.pad(x, (0, 0, 1, 0, 0, 0))),
    Case("steps minus the one before", lambda m, x: x.diff(dim=1, prepend=x[:, :1] - 1)),
    Case("windows of steps", lambda m, x: x.unfold(1, 3, 1).multiply(2)),
    Case(
        "sampled by a grid",
        lambda m, x, y: F.grid_sample(x.view(-1, 1, 4, 2), y.view(-1, 2, 2, 2), align_corners=False),
        ((8,), (8,)),
    ),
    Case("pairs of vectors", lambda m, x: m.pairs(x, x.tanh()), ((6, 8),), {"pairs": lambda: nn.Bilinear(8, 8, 3)}),
    Case("entries of every row", lambda m, x: x.scatter(1, x.argsort(1), x).index_select(1, torch.tensor([1, 0]))),
]


@pytest.mark.parametrize("case", APART, ids=str)
def test_rows_that_do_not_meet_are_proven(case: Case) -> None:
    captured = capture(sketch(case.function, case.parts), draw(case.rows, 2, seed=0))
    assert all(spec.row_dim == 0 for spec in captured.program.outputs)


@pytest.mark.parametrize("name", mostly(STANDARD, slow=(*LONG_EXPORTS, "vit", "gru")))
def test_every_member_of_the_zoo_is_proven(name: str) -> None:
    captured = zoo_capture(name)
    assert {captured.proof.spec(node).row_dim for node in captured.exported.inputs} == {0}
    assert all(spec.row_dim is not None for spec in captured.program.outputs)
