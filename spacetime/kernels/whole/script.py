"""What a whole program does to one row, as values: products, norms, lookups, attention, runs of pointwise operations.

All places are static, since a row is never looked at together with another one: only the addresses of a row's input,
of its scratch memory and of its output change. No torch; printable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

Shape = tuple[int, ...]


class Place(Enum):
    """Whose memory a buffer is."""

    INPUT = "input"
    SCRATCH = "scratch"
    OUTPUT = "output"
    OPERAND = "operand"  # a weight of the tenant, the same for all of its rows
    CONSTANT = "constant"  # the same for all tenants


@dataclass(frozen=True, slots=True)
class Buffer:
    """So many floats of a row, or as much memory of integers.

    `number`: which input, output, operand or constant; in scratch memory, which buffer.
    """

    place: Place
    number: int
    floats: int


@dataclass(frozen=True, slots=True)
class View:
    """Some floats of a buffer, without dimensions of size 1; steps and the offset are in floats."""

    buffer: Buffer
    offset: int
    shape: Shape
    strides: Shape

    @staticmethod
    def of(buffer: Buffer, offset: int, shape: Shape, strides: Shape) -> View:
        kept = [axis for axis, size in enumerate(shape) if size != 1]
        return View(buffer, offset, tuple(shape[axis] for axis in kept), tuple(strides[axis] for axis in kept))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.buffer.place.value}{self.buffer.number}+{self.offset}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Product:
    """y[position] = weight @ x[position] + bias, for every position of the row. Operands by their number.

    A weight may also be something that was computed: [num_outputs, num_inputs], the last step 1.
    """

    x: View  # [positions, num_inputs], both steps static, the last one 1
    y: View  # [positions, num_outputs], dense
    weight: int | View
    bias: int | None
    positions: int
    position_step: int
    num_inputs: int
    num_outputs: int
    weight_step: int  # from the weights of one output to those of the next

    @property
    def work(self) -> int:
        """Multiplications for a row."""
        return self.num_inputs * self.num_outputs * self.positions

    def __str__(self) -> str:
        weight = f"operand {self.weight}" if isinstance(self.weight, int) else str(self.weight)
        return f"{self.y} = product({self.x}, {weight})"


@dataclass(frozen=True, slots=True)
class Along:
    """y[position] = x[position], normalised over its last dimension: to mean 0 and variance 1, or to a sum of 1."""

    kind: str  # "layer_norm" | "softmax"
    x: View  # [positions, size], both steps static, the last one 1
    y: View  # dense
    positions: int
    position_step: int
    size: int
    epsilon: float = 0.0

    def __str__(self) -> str:
        return f"{self.y} = {self.kind}({self.x})"


@dataclass(frozen=True, slots=True)
class Lookup:
    """y[i] = source[index i]. Indices are integers of 64 bits: their offset and step are in these."""

    source: View  # [entries, width] dense
    indices: View
    y: View  # dense
    num_entries: int
    width: int
    num_indices: int
    index_step: int

    def __str__(self) -> str:
        return f"{self.y} = lookup({self.source}, {self.indices})"


@dataclass(frozen=True, slots=True)
class Flags:
    """y[i] = 1 if integer i of x is something else than 0, else 0: what PyTorch has as a bool. As in lookups, x and its

    step are in integers of 64 bits.
    """

    x: View
    y: View  # dense
    number: int
    step: int

    def __str__(self) -> str:
        return f"{self.y} = flags({self.x})"


class Mask(Enum):
    """What an attention's mask holds."""

    FLAGS = "flags"  # of what may be seen
    ADDED = "added"  # to the scores, before the softmax


@dataclass(frozen=True, slots=True)
class Steps:
    """In floats: from one head to the next, and from one vector of a head to the next."""

    head: int
    vector: int


@dataclass(frozen=True, slots=True)
class Heads:
    """What an attention is without the places of its views: equal ones are one function."""

    num_heads: int
    num_queries: int
    num_keys: int
    size: int  # of a query, and of a key
    value_size: int
    scale: float
    mask: Mask | None
    is_causal: bool  # vector i of the queries sees the first i + 1 keys, at most
    queries: Steps
    keys: Steps
    values: Steps
    masks: Steps  # a vector per query
    y: Steps

    @property
    def work(self) -> int:
        return self.num_heads * self.num_queries * self.num_keys * (self.size + self.value_size)


@dataclass(frozen=True, slots=True)
class Attention:
    """y[head, i] = sum over j of softmax over j of (scale * queries[head, i] @ keys[head, j]) * values[head, j].

    The last step of every view is 1. Who sees nothing gets zeros.
    """

    queries: View
    keys: View
    values: View
    mask: View | None
    y: View
    scores: View  # [num_heads, num_queries, num_keys], dense: memory of its own
    heads: Heads

    @property
    def work(self) -> int:
        return self.heads.work

    def __str__(self) -> str:
        return f"{self.y} = attention({self.queries}, {self.keys}, {self.values}, {self.mask})"


@dataclass(frozen=True, slots=True)
class Result:
    """The value of an earlier operation of the same group."""

    number: int


Argument = View | Result | float


@dataclass(frozen=True, slots=True)
class Operation:
    name: str  # of functions.py
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Operations on equally many floats, in one pass; `stores` are the results that others read."""

    shape: Shape
    operations: tuple[Operation, ...]
    stores: tuple[tuple[int, View], ...]

    def __str__(self) -> str:
        names = " ".join(operation.name for operation in self.operations)
        return f"{', '.join(str(view) for _, view in self.stores)} = {names}"


Stage = Product | Along | Lookup | Flags | Attention | Pointwise


@dataclass(frozen=True, slots=True)
class Script:
    """Everything that is computed for a row, in order. Equal scripts are served by the same native function."""

    inputs: tuple[int, ...]  # floats per row
    outputs: tuple[Shape, ...]  # of a row
    operands: tuple[int, ...]  # of the fused program: what products number
    stages: tuple[Stage, ...]
    scratch_floats: int
    num_constants: int = 0

    @property
    def pointwise(self) -> tuple[Pointwise, ...]:
        return tuple(stage for stage in self.stages if isinstance(stage, Pointwise))

    @property
    def weight_words(self) -> int:
        """Of a request in the other table: its tenant's operands, then the constants."""
        return len(self.operands) + self.num_constants

    @property
    def request_words(self) -> int:
        """Of a request in the table that the native function reads: rows, scratch, fault, inputs, outputs."""
        return 3 + len(self.inputs) + len(self.outputs)

    @property
    def vectors_per_row(self) -> float:
        """How many vectors of a row meet its weights: 1 for most models, the length for one of sequences."""
        products = [stage for stage in self.stages if isinstance(stage, Product) and isinstance(stage.weight, int)]
        weights = sum([each.num_inputs * each.num_outputs for each in products])
        met = sum([each.work for each in products])
        return met / weights if weights else 1.0

    @property
    def work_per_stage(self) -> float:
        """Multiplications for a row, on average."""
        work = [stage.work for stage in self.stages if isinstance(stage, (Product, Attention))]
        return sum(work) / len(self.stages)

    @property
    def may_fault(self) -> bool:
        """Can a row ask for what does not exist?"""
        return any(isinstance(stage, Lookup) for stage in self.stages)

    def __str__(self) -> str:
        return "\n".join(map(str, self.stages))
