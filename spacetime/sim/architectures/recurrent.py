"""Recurrent networks: sequence classifiers by GRU and LSTM. Used by sim/architectures only; no torch.

The inputs of all steps are multiplied at once; the states one after another, which is why one layer is so
many kernels. As torch decomposes them, the steps are the leading dimension and the rows the second.
"""

from __future__ import annotations

from spacetime.ir import Program, Rows
from spacetime.sim.architectures.builder import Builder, Value


def _from_inputs(b: Builder, sequence: Value, gates: int) -> Value:
    steps, features = sequence.size(1), sequence.size(2)
    return b.linear("from_input", b.view(sequence, steps, Rows(1), features), gates)


def _classified(b: Builder, states: list[Value], classes: int) -> Program:
    """The last state decides; all are written."""
    joined = b.cat(*states, dim=0)
    return b.program(b.linear("head", b.view(joined, Rows(1), joined.size(2)), classes))


def gru(*, steps: int = 8, features: int = 128, hidden: int = 256, classes: int = 10) -> Program:
    b = Builder()
    sequence = b.input(Rows(1), steps, features)
    state = b.zeros(1, Rows(1), hidden)
    from_inputs = _from_inputs(b, sequence, 3 * hidden)
    states = []
    for _ in range(steps):
        state = _gru_step(b, from_inputs, state)
        states.append(state)
    return _classified(b, states, classes)


def _gru_step(b: Builder, from_inputs: Value, state: Value) -> Value:
    from_state = b.linear("from_state", state, 3 * state.size(2))
    hidden = [b.view(from_state, *state.shape) for _ in range(3)]
    fresh = [b.view(from_inputs, *state.shape[1:]) for _ in range(3)]
    reset, update = (b.pointwise("sigmoid", b.add(hidden[gate], fresh[gate])) for gate in (0, 1))
    candidate = b.pointwise("tanh", b.add(fresh[2], b.pointwise("mul", hidden[2], reset)))
    kept = b.pointwise("mul", b.pointwise("sub", state, candidate, alpha=1), update)
    return b.add(kept, candidate)


def lstm(*, steps: int = 8, features: int = 128, hidden: int = 256, classes: int = 10) -> Program:
    b = Builder()
    sequence = b.input(Rows(1), steps, features)
    state, memory = b.zeros(1, Rows(1), hidden), b.zeros(1, Rows(1), hidden)
    from_inputs = _from_inputs(b, sequence, 4 * hidden)
    states = []
    for _ in range(steps):
        state, memory = _lstm_step(b, from_inputs, state, memory)
        states.append(state)
    return _classified(b, states, classes)


def _lstm_step(b: Builder, from_inputs: Value, state: Value, memory: Value) -> tuple[Value, Value]:
    from_state = b.linear("from_state", state, 4 * state.size(2))
    gates = b.add(from_state, b.view(from_inputs, Rows(1), from_inputs.size(2)))
    parts = [b.view(gates, *state.shape) for _ in range(4)]
    entered, forgotten = b.pointwise("sigmoid", parts[0]), b.pointwise("sigmoid", parts[1])
    candidate, shown = b.pointwise("tanh", parts[2]), b.pointwise("sigmoid", parts[3])
    kept = b.pointwise("mul", forgotten, memory)
    memory = b.add(kept, b.pointwise("mul", entered, candidate))
    return b.pointwise("mul", shown, b.pointwise("tanh", memory)), memory
