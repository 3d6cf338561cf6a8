"""The zoo by name: seeded modules and inputs that fit them. Demos, tests and benches may import it.

>>> module = build("mlp", seed=1)
>>> module(*example("mlp", rows=3)).shape
torch.Size([3, 10])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spacetime.errors import OptionError
from spacetime.zoo import convnets, mlp, mobilenet, recommender, recurrent, resnet, tied, transformers

Example = Callable[[int, int], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """An architecture (`build` leaves its weights to the global generator) and its inputs for (rows, seed)."""

    name: str
    build: Callable[[], nn.Module]
    example: Example
    family: str
    note: str


def build(name: str, seed: int = 0) -> nn.Module:
    """The module in eval mode, its weights drawn from `seed`; the global random state stays as it was."""
    entry = _entry(name)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        module = entry.build()
        _randomise(module)
    return module.eval()


def example(name: str, rows: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Positional inputs of `rows` rows, drawn from `seed`."""
    return _entry(name).example(rows, seed)


def _entry(name: str) -> ZooEntry:
    if name not in ZOO:
        raise OptionError(f"the zoo has no model {name!r}", f"known: {', '.join(ZOO)}", "take one of these names")
    return ZOO[name]


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Weights under which a wrong one shows: signals keep their size with depth, no norm is the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.LayerNorm | nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.0)
            layer.bias.normal_(std=0.1)
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)


def _floats(*row_shapes: tuple[int, ...]) -> Example:
    """One input of normal floats for each shape of a row."""

    def draw(rows: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(rows, *shape, generator=generator) for shape in row_shapes)

    return draw


def _image(side: int) -> Example:
    return _floats((3, side, side))


def _tied_example(rows: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(tied.VOCABULARY, (rows, 16), generator=generator),)


def _bert_example(rows: int, seed: int) -> tuple[Tensor, ...]:
    """Sentences of 8 to 32 tokens, padded; the second segment starts at token 8."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.arange(32)
    token_ids = torch.randint(transformers.BERT_VOCABULARY, (rows, 32), generator=generator)
    lengths = torch.randint(8, 33, (rows, 1), generator=generator)
    segment_ids = (position >= 8).long().repeat(rows, 1)
    return token_ids, segment_ids, (position < lengths).long()


def _recommender_example(rows: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, recommender.DENSE_FEATURES, generator=generator)
    return dense, *(torch.randint(size, (rows,), generator=generator) for size in recommender.TABLE_SIZES)


def _vgg19_imagenet() -> nn.Module:
    return convnets.Vgg(convnets.VGG19_STAGES)


def _vgg16_small() -> nn.Module:
    return convnets.Vgg(convnets.VGG16_STAGES, pooled_side=1, hidden=512)


def _vgg19_small() -> nn.Module:
    return convnets.Vgg(convnets.VGG19_STAGES, pooled_side=1, hidden=512)


def _unet_small() -> nn.Module:
    return convnets.UNet(base=16)


_ENTRIES = (
    ZooEntry("mlp", mlp.Mlp, _floats((256,)), "mlp", "4 x 256"),
    ZooEntry("alexnet", convnets.AlexNet, _image(224), "convnet", "standard, 61 M parameters"),
    ZooEntry("vgg16", _vgg16_small, _image(32), "convnet", "32x32, narrow classifier"),
    ZooEntry("vgg19", _vgg19_small, _image(32), "convnet", "32x32, narrow classifier"),
    ZooEntry("vgg19_imagenet", _vgg19_imagenet, _image(224), "convnet", "standard, 144 M parameters"),
    ZooEntry("unet", _unet_small, _image(32), "convnet", "32x32, skips and transposed convolutions"),
    ZooEntry("resnet18", resnet.resnet18, _image(64), "resnet", "standard widths, 64x64"),
    ZooEntry("resnet34", resnet.resnet34, _image(64), "resnet", "standard widths, 64x64"),
    ZooEntry("resnet50", resnet.resnet50, _image(64), "resnet", "standard widths, 64x64"),
    ZooEntry("mobilenet_v2", mobilenet.MobileNetV2, _image(64), "mobilenet", "depthwise convolutions, 64x64"),
    ZooEntry("vit", transformers.VisionTransformer, _image(32), "transformer", "65 tokens, width 192, depth 6"),
    ZooEntry("bert", transformers.BertEncoder, _bert_example, "transformer", "32 tokens, width 256, depth 4, mask"),
    ZooEntry("gru", recurrent.gru_classifier, _floats((8, 128)), "recurrent", "8 steps, 128 to 256"),
    ZooEntry("lstm", recurrent.lstm_classifier, _floats((8, 128)), "recurrent", "8 steps, 128 to 256"),
    ZooEntry("gru_cell", recurrent.GruStep, _floats((256,), (256,)), "recurrent", "one step, 2 inputs"),
    ZooEntry("lstm_cell", recurrent.LstmStep, _floats((256,), (256,), (256,)), "recurrent", "one step, 3 inputs"),
    ZooEntry("recommender", recommender.Recommender, _recommender_example, "recommender", "4 tables, dot products"),
    ZooEntry("tied_lm", tied.TiedLanguageModel, _tied_example, "tied", "tied embeddings, returns a dict"),
)

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}

# A forward of one row takes under 15 ms on one CPU thread: cheap enough for property tests.
SMALL: tuple[str, ...] = (
    "mlp",
    "unet",
    "resnet18",
    "mobilenet_v2",
    "vit",
    "bert",
    "gru",
    "lstm",
    "gru_cell",
    "lstm_cell",
    "recommender",
    "tied_lm",
)

# Every architecture once, without the deeper twins, at sizes that run on two CPU cores.
STANDARD: tuple[str, ...] = tuple(name for name in ZOO if name not in ("vgg16", "resnet34", "vgg19_imagenet"))
