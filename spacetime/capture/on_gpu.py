"""The form of a fused program for GPUs, where launches are what costs. Used by capture/ and tests only.

Two changes. A first step makes the *owners* of the lane: device tables of who each row belongs to, which every slot
operation then reads. And a linear layer or a convolution takes the residual and the activation behind it into its own
launch, where nobody else reads what is between. kernels/bound/ implements the slot operations that are named here; on
a CPU no program has this form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from spacetime.capture.families import op_name
from spacetime.capture.fuse import FusedProgram, Ref, Step
from spacetime.capture.rows import RowProof
from spacetime.ir import TensorSpec

OWNERS = Ref("__owners")
_FAULTS = "__faults"

FORMS = {
    "linear": "gpu_linear",
    "conv": "gpu_conv",
    "embedding": "gpu_embedding",
    "layer_norm": "gpu_layer_norm",
    "affine": "gpu_affine",
    "gather": "gpu_gather",
}
_HOSTS = ("gpu_linear", "gpu_conv")  # what takes others in
_NO_BOUND = float("inf")


def on_gpu(program: FusedProgram, proof: RowProof) -> FusedProgram:
    """The same program in the form for GPUs."""
    specs = {node.name: spec for node, spec in proof.specs.items() if isinstance(spec, TensorSpec)}
    return replace(program, steps=_Former(program, specs).run())


class _Former:
    """Walks the steps once; a step that is taken in disappears, and its host moves to where it was."""

    def __init__(self, program: FusedProgram, specs: dict[str, TensorSpec]) -> None:
        self._program = program
        self._specs = specs
        self._readers = Counter(name for step in program.steps for name in _read((step.args, step.kwargs)))
        self._readers.update(_read(program.outputs))
        self._steps: dict[str, Step] = {}  # by what they produce, in order

    def run(self) -> tuple[Step, ...]:
        for step in self._program.steps:
            host = self._host_of_activation(step) or self._host_of_residual(step) or self._form(step)
            self._steps[host.out] = host
        steps = tuple(self._steps.values())
        targets = {step.target for step in steps if step.is_slot}
        if not targets & set(FORMS.values()):
            return steps
        first = Step(OWNERS.name, "gpu_owners")
        # A kernel cannot raise: a token outside its table is marked, and fails its request at the end.
        last = (Step(_FAULTS, "gpu_faults", (OWNERS,)),) if "gpu_embedding" in targets else ()
        return (first, *steps, *last)

    def _form(self, step: Step) -> Step:
        if step.target not in FORMS:
            return step
        attributes = dict(step.attributes)
        if step.target == "conv":
            activation = attributes.pop("activation")
            attributes["epilogue"], attributes["bounds"] = _of_bounds(None if activation is None else activation[1])
        elif step.target == "linear":
            attributes |= {"epilogue": "none", "bounds": None}
        return replace(step, target=FORMS[step.target], args=(OWNERS, *step.args), attributes=attributes)

    def _host(self, value: Any) -> Step | None:
        """The step that produces a value, if it can still take something in."""
        step = self._steps.get(value.name) if isinstance(value, Ref) else None
        if step is None or step.target not in _HOSTS or self._readers[step.out] != 1:
            return None
        is_open = step.attributes["epilogue"] == "none" and step.attributes["bounds"] is None
        return step if is_open else None

    def _host_of_activation(self, step: Step) -> Step | None:
        name = None if step.is_slot else _activation(step)
        host = None if name is None else self._host(step.args[0])
        if host is None:
            return None
        del self._steps[host.out]
        return replace(host, out=step.out, attributes={**host.attributes, "epilogue": name})

    def _host_of_residual(self, step: Step) -> Step | None:
        """The later of the two that are added: everything the other one needs is there by then."""
        if not self._adds_alike(step):
            return None
        order = list(self._steps)
        pairs = (step.args, step.args[::-1])
        hosts = [(order.index(host.out), host, other) for value, other in pairs if (host := self._host(value))]
        hosts = [found for found in hosts if len(found[1].args) == 2]  # has no residual yet
        if not hosts:
            return None
        _, host, other = max(hosts, key=lambda found: found[0])
        del self._steps[host.out]
        return replace(host, out=step.out, args=(*host.args, other))

    def _adds_alike(self, step: Step) -> bool:
        """y = a + b, of one shape and type."""
        if step.is_slot or str(step.target) != "aten.add.Tensor" or step.kwargs.get("alpha", 1) != 1:
            return False
        if len(step.args) != 2 or not all(isinstance(value, Ref) for value in step.args):
            return False
        specs = [self._specs.get(value.name) for value in step.args]
        return specs[0] is not None and specs[0] == specs[1]


def _activation(step: Step) -> str | None:
    """The activation of a step by the name that kernels know it by."""
    name = op_name(step.target)
    if name in ("relu", "relu6", "silu") and len(step.args) == 1 and not step.kwargs:
        return name
    if name == "gelu" and len(step.args) == 1:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(step.kwargs.get("approximate", "none"))
    if name == "hardtanh" and step.args[1:] == (0.0, 6.0) and not step.kwargs:
        return "relu6"
    return None


def _of_bounds(bounds: tuple[float, float] | None) -> tuple[str, tuple[float, float] | None]:
    """The activation that a clamp is, or no activation and the clamp."""
    known = {None: "none", (0.0, _NO_BOUND): "relu", (0.0, 6.0): "relu6"}
    return (known[bounds], None) if bounds in known else ("none", bounds)


def _read(value: Any) -> Iterator[str]:
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, dict):
        yield from _read(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _read(item)
