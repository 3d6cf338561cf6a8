"""The pointwise operations that whole programs may have, on registers of floats.

Exponentials follow Cephes: a polynomial after the power of two has been taken out, within 2 units of the last place.
NaN stays NaN, and infinities end where PyTorch's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from spacetime.kernels.vector.emitter import WORD, Emitter, Value

Arguments = Callable[[Sequence[Any], Mapping[str, Any]], list[Any] | None]  # what is computed with; None: not like this


@dataclass(frozen=True, slots=True)
class Function:
    """`arguments`: of PyTorch's operator, as those of `emit`."""

    name: str
    arguments: Arguments
    emit: Callable[..., Value]  # (emitter, *values) -> value


class Math:
    """Arithmetic on vectors of one function."""

    def __init__(self, e: Emitter) -> None:
        self.e, self.b = e, e.b
        self.words = ir.VectorType(WORD, e.lanes)

    def number(self, value: float) -> Value:
        return ir.Constant(self.e.vector, [value] * self.e.lanes)

    def word(self, value: int) -> Value:
        return ir.Constant(self.words, [value] * self.e.lanes)

    def polynomial(self, x: Value, *coefficients: float) -> Value:
        """The highest power first."""
        total = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            total = self.e.fma(total, x, self.number(coefficient))
        return total

    def bits(self, x: Value) -> Value:
        return self.b.bitcast(x, self.words)

    def floats(self, bits: Value) -> Value:
        return self.b.bitcast(bits, self.e.vector)

    def absolute(self, x: Value) -> Value:
        return self.floats(self.b.and_(self.bits(x), self.word(0x7FFFFFFF)))

    def with_sign(self, x: Value, of: Value) -> Value:
        sign = self.b.and_(self.bits(of), self.word(-0x80000000))
        return self.floats(self.b.or_(self.bits(x), sign))

    def larger(self, x: Value, y: Value) -> Value:
        """NaN of either is NaN."""
        chosen = self.b.select(self.b.fcmp_unordered(">", x, y), x, y)
        return self.b.select(self.b.fcmp_unordered("uno", y, y), y, chosen)

    def smaller(self, x: Value, y: Value) -> Value:
        chosen = self.b.select(self.b.fcmp_unordered("<", x, y), x, y)
        return self.b.select(self.b.fcmp_unordered("uno", y, y), y, chosen)

    def root(self, x: Value) -> Value:
        function = self.e.extern(f"llvm.sqrt.v{self.e.lanes}f32", self.e.vector, [self.e.vector])
        return self.b.call(function, [x])

    def exp(self, x: Value) -> Value:
        """2**n * e**r, r within half a logarithm of 2; 2**n in two factors, so that the smallest results are right."""
        low, high = self.number(-104.0), self.number(89.0)
        x = self.e.clamp(x, low, high)
        magic = self.number(12582912.0)  # 1.5 * 2**23: adding it rounds, and leaves n in the lowest bits
        shifted = self.e.fma(x, self.number(1 / math.log(2)), magic)
        power = self.b.fsub(shifted, magic)
        rest = self.e.fma(power, self.number(-0.693359375), x)
        rest = self.e.fma(power, self.number(2.12194440e-4), rest)
        found = self.polynomial(
            rest, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
        )
        found = self.b.fadd(self.e.fma(found, self.b.fmul(rest, rest), rest), self.number(1.0))
        whole = self.b.sub(self.bits(shifted), self.bits(magic))
        half = self.b.ashr(whole, self.word(1))
        for factor in (half, self.b.sub(whole, half)):
            exponent = self.b.shl(self.b.add(factor, self.word(127)), self.word(23))
            found = self.b.fmul(found, self.floats(exponent))
        return found

    def sigmoid(self, x: Value) -> Value:
        one = self.number(1.0)
        return self.b.fdiv(one, self.b.fadd(one, self.exp(self.b.fneg(x))))

    def tanh(self, x: Value) -> Value:
        """By the exponential, and by a polynomial near zero, where that would cancel."""
        size = self.absolute(x)
        two, one = self.number(2.0), self.number(1.0)
        large = self.b.fsub(one, self.b.fdiv(two, self.b.fadd(self.exp(self.b.fmul(size, two)), one)))
        square = self.b.fmul(x, x)
        small = self.polynomial(
            square, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
        )
        small = self.e.fma(self.b.fmul(small, square), x, x)
        return self.b.select(self.b.fcmp_ordered("<", size, self.number(0.625)), small, self.with_sign(large, x))

    def erf(self, x: Value) -> Value:
        """x * p(x**2) near zero, 1 - exp(x * p(x)) beyond."""
        size = self.absolute(x)
        square = self.b.fmul(x, x)
        small = self.polynomial(
            square,
            -5.96761703e-4,
            4.99119423e-3,
            -2.67681349e-2,
            1.12819925e-1,
            -3.76125336e-1,
            1.28379166e-1,
        )
        small = self.e.fma(small, x, x)
        large = self.polynomial(
            size,
            -1.72853470e-5,
            3.83197126e-4,
            -3.88396438e-3,
            2.42546219e-2,
            -1.06777877e-1,
            -6.34846687e-1,
            -1.28717512e-1,
        )
        large = self.e.fma(large, size, self.b.fneg(size))
        large = self.b.fsub(self.number(1.0), self.exp(large))
        return self.b.select(self.b.fcmp_ordered("<", size, self.number(0.927734375)), small, self.with_sign(large, x))


def _plain(*names: str) -> Arguments:
    """So many positional arguments, and nothing else."""

    def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        return list(args) if len(args) == len(names) and not kwargs else None

    return arguments


def _scaled(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Of a sum: without a factor for the second argument."""
    given = [*args, kwargs.get("alpha", 1)] if len(args) == 2 else list(args)
    return given[:2] if given[2:] == [1] and not kwargs.keys() - {"alpha"} else None


def _quotient(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
    return list(args) if len(args) == 2 and kwargs.get("rounding_mode") is None else None


def _power(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """The argument so many times: small powers are products, as in PyTorch."""
    return [args[0]] * int(args[1]) if len(args) == 2 and not kwargs and args[1] in (2, 3) else None


def _bounded(low: float, high: float) -> Arguments:
    """Of a clamp: the argument and both bounds, which are these by default."""

    def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        given = [*args, *[None] * (3 - len(args))]
        low_given = kwargs.get("min", kwargs.get("min_val", given[1]))
        high_given = kwargs.get("max", kwargs.get("max_val", given[2]))
        return [given[0], low if low_given is None else low_given, high if high_given is None else high_given]

    return arguments


def _gelu_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
    return list(args) if len(args) == 1 and kwargs.get("approximate", "none") == "none" else None


def _gelu(e: Emitter, x: Value) -> Value:
    m = Math(e)
    half = e.b.fmul(x, m.number(0.5))
    return e.fma(half, m.erf(e.b.fmul(x, m.number(math.sqrt(0.5)))), half)


def _silu(e: Emitter, x: Value) -> Value:
    return e.b.fmul(x, Math(e).sigmoid(x))


def _relu(e: Emitter, x: Value) -> Value:
    return e.b.select(e.b.fcmp_unordered("<", e.zero, x), x, e.zero)  # of NaN, too


_ONE = _plain("x")
_TWO = _plain("x", "y")

_ALL = (
    Function("copy", _ONE, lambda e, x: x),
    Function("add", _scaled, lambda e, x, y: e.b.fadd(x, y)),
    Function("sub", _scaled, lambda e, x, y: e.b.fsub(x, y)),
    Function("rsub", _scaled, lambda e, x, y: e.b.fsub(y, x)),
    Function("mul", _TWO, lambda e, x, y: e.b.fmul(x, y)),
    Function("div", _quotient, lambda e, x, y: e.b.fdiv(x, y)),
    Function("neg", _ONE, lambda e, x: e.b.fneg(x)),
    Function("abs", _ONE, lambda e, x: Math(e).absolute(x)),
    Function("square", _ONE, lambda e, x: e.b.fmul(x, x)),
    Function("pow", _power, lambda e, *x: e.b.fmul(e.b.fmul(*x[:2]), x[2]) if x[2:] else e.b.fmul(*x)),
    Function("reciprocal", _ONE, lambda e, x: e.b.fdiv(Math(e).number(1.0), x)),
    Function("relu", _ONE, _relu),
    Function("relu6", _ONE, lambda e, x: e.clamp(x, Math(e).number(0.0), Math(e).number(6.0))),
    Function("hardtanh", _bounded(-1.0, 1.0), lambda e, x, low, high: e.clamp(x, low, high)),
    Function("sqrt", _ONE, lambda e, x: Math(e).root(x)),
    Function("rsqrt", _ONE, lambda e, x: e.b.fdiv(Math(e).number(1.0), Math(e).root(x))),
    Function("exp", _ONE, lambda e, x: Math(e).exp(x)),
    Function("sigmoid", _ONE, lambda e, x: Math(e).sigmoid(x)),
    Function("tanh", _ONE, lambda e, x: Math(e).tanh(x)),
    Function("silu", _ONE, _silu),
    Function("gelu", _gelu_arguments, _gelu),
    Function("maximum", _TWO, lambda e, x, y: Math(e).larger(x, y)),
    Function("minimum", _TWO, lambda e, x, y: Math(e).smaller(x, y)),
)
FUNCTIONS: dict[str, Function] = {function.name: function for function in _ALL}
