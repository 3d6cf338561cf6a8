"""Well-known architectures as programs, without torch: what the simulator's studies run. Used by sim/ and above.

A program is what capture/ finds in the module of the same name, kernel by kernel; tests hold the two together
where the zoo has the module, and to the published numbers where it has not.

>>> program("resnet50").flops(rows=1) // 10**9
8
>>> len(program("resnet50").kernels), len(program("resnet50", folded=True).kernels)
(174, 88)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from spacetime.errors import OptionError
from spacetime.ir import Program
from spacetime.sim.architectures import classic, mobile, recurrent, residual, transformers
from spacetime.sim.architectures.folding import folded as fold

__all__ = ["names", "program"]


def _resnet(blocks: tuple[int, ...], *, bottlenecks: bool = True) -> Callable[[], Program]:
    return lambda: residual.resnet(blocks, bottlenecks=bottlenecks)


_ARCHITECTURES: dict[str, Callable[[], Program]] = {
    "alexnet": classic.alexnet,
    "vgg16": lambda: classic.vgg(classic.VGG16_STAGES),
    "vgg19": lambda: classic.vgg(classic.VGG19_STAGES),
    "resnet18": _resnet(residual.RESNET18_BLOCKS, bottlenecks=False),
    "resnet34": _resnet(residual.RESNET50_BLOCKS, bottlenecks=False),
    "resnet50": _resnet(residual.RESNET50_BLOCKS),
    "resnet101": _resnet(residual.RESNET101_BLOCKS),
    "resnet152": _resnet(residual.RESNET152_BLOCKS),
    "resnext101": lambda: residual.resnet(residual.RESNET101_BLOCKS, bottlenecks=True, groups=32, group_width=8),
    "densenet201": lambda: residual.densenet(residual.DENSENET201_BLOCKS),
    "squeezenet": classic.squeezenet,
    "shufflenet": mobile.shufflenet_v2,
    "mobilenet_v2": mobile.mobilenet_v2,
    "efficientnet_b0": mobile.efficientnet_b0,
    "albert": transformers.albert,
    "bert": transformers.bert,
    "distilbert": transformers.distilbert,
    "gpt2": transformers.gpt2,
    "vit_b16": transformers.vit,
    "mlp": classic.mlp,
    "gru": recurrent.gru,
    "lstm": recurrent.lstm,
}

# The three shapes of the Space-Time table: RNN matvec, ResNet-18 conv2_2, square.
_GEMMS = ("gemm_512x1x512", "gemm_256x128x1152", "gemm_256x256x256")
_GEMM = re.compile(r"gemm_([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


def names() -> tuple[str, ...]:
    """Every architecture by name; besides these, `gemm_MxNxK` of any size is one."""
    return (*_ARCHITECTURES, *_GEMMS)


@cache
def program(name: str, *, folded: bool = False) -> Program:
    """The program of an architecture for inputs of its usual size.

    `folded`: as fused lanes run it, norms and activations inside the convolutions before them; otherwise as
    the plain module runs it.
    """
    if folded:
        return fold(program(name))
    shape = _GEMM.fullmatch(name)
    if shape:
        return classic.gemm(*map(int, shape.groups()))
    if name not in _ARCHITECTURES:
        known = ", ".join(names())
        raise OptionError(f"no architecture is called {name!r}", f"known: {known}", "take one of these, or gemm_MxNxK")
    return _ARCHITECTURES[name]()
