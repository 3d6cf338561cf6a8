"""Architectures that the importer must read: convnets that the zoo lacks, Hugging Face's transformers, recurrences.

Widths are small and depths few; every kind of operation that the full models contain is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spacetime.zoo import convnets, mobilenet, resnet, transformers

TOKENS = 8
VOCABULARY = 50


class Residual(nn.Module):
    """ResNeXt's bottleneck: grouped convolution between two of 1x1."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            *(nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(channels)),
            *(nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return functional.relu(self.path(image) + image)


def resnext() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.MaxPool2d(3, 2, 1), Residual(16, 4), Residual(16, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(16, 10),
    )


class DenseLayer(nn.Module):
    """DenseNet: norms before convolutions, the input kept beside the output."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 2 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, self.path(image)], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False)),
            *(nn.AvgPool2d(2, 2), DenseLayer(8, 4), nn.BatchNorm2d(12)),
        )
        self.classifier = nn.Linear(12, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = functional.adaptive_avg_pool2d(functional.relu(self.features(image), inplace=True), (1, 1))
        logits: Tensor = self.classifier(torch.flatten(features, 1))
        return logits


class Fire(nn.Module):
    """SqueezeNet: a squeeze, then 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.narrow = nn.Conv2d(squeezed, expanded, 1)
        self.wide = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        squeezed = functional.relu(self.squeeze(image))
        return torch.cat([functional.relu(self.narrow(squeezed)), functional.relu(self.wide(squeezed))], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8)),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8), nn.Dropout(), nn.Conv2d(16, 10, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
    )


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass by; the channels of both halves are then interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.path = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)),
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        )

    def forward(self, image: Tensor) -> Tensor:
        passing, changed = image.chunk(2, dim=1)
        joined = torch.cat((passing, self.path(changed)), dim=1)
        rows, channels, height, width = joined.size()
        shuffled = joined.view(rows, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return shuffled.view(rows, channels, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.units = nn.Sequential(nn.MaxPool2d(3, 2, 1), ShuffleUnit(16), ShuffleUnit(16))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.units(self.stem(image)).mean([2, 3]))
        return logits


class MobileBlock(nn.Module):
    """EfficientNet's inverted residual: expand, depthwise, squeeze and excite, project."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), activation())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False), nn.BatchNorm2d(wide), activation()
        )
        self.excite = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, channels, 1), activation()),
            *(nn.Conv2d(channels, wide, 1), gate()),
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, image: Tensor) -> Tensor:
        wide = self.depthwise(self.expand(image))
        projected: Tensor = self.project(self.excite(wide) * wide) + image
        return projected


def efficientnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True)),
        *(MobileBlock(8, nn.SiLU, nn.Sigmoid), MobileBlock(8, nn.SiLU, nn.Sigmoid), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10)),
    )


def mobilenet_v3() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(MobileBlock(8, nn.Hardswish, nn.Hardsigmoid), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 10)),
    )


class AlexNet(convnets.AlexNet):
    """A tenth of its classifier; the convolutions as they are."""

    def __init__(self) -> None:
        super().__init__(classes=10)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = convnets.classifier(256, 32, 10)


def vgg19() -> nn.Module:
    stages = tuple((channels // 16, count) for channels, count in convnets.VGG19_STAGES)
    return convnets.Vgg(stages, pooled_side=1, hidden=16, classes=10)


def vit() -> nn.Module:
    return transformers.VisionTransformer(side=16, width=32, depth=2, heads=2)


class Sequence(nn.Module):
    """A recurrence and a head; `initial`: its first state comes from an input."""

    def __init__(self, recurrence: nn.LSTM | nn.GRU, initial: bool = False) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.initial = initial
        directions = 2 if recurrence.bidirectional else 1
        self.head = nn.Linear(directions * recurrence.hidden_size, 3)

    def forward(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.recurrence(sequence)
        hidden = last[0] if isinstance(last, tuple) else last
        return self.head(states[:, -1]), hidden.transpose(0, 1)


def lstm() -> nn.Module:
    return Sequence(nn.LSTM(6, 8, num_layers=2, batch_first=True))


def lstm_two_ways() -> nn.Module:
    return Sequence(nn.LSTM(6, 8, batch_first=True, bidirectional=True))


def gru() -> nn.Module:
    return Sequence(nn.GRU(6, 8, batch_first=True))


def gru_two_ways() -> nn.Module:
    return Sequence(nn.GRU(6, 8, num_layers=2, batch_first=True, bidirectional=True))


class HuggingFace(nn.Module):
    """Tuples of tensors, and only those that have rows."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.options = options


class TextModel(HuggingFace):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        state: Tensor = self.model(input_ids=ids, attention_mask=mask, return_dict=False, **self.options)[0]
        return state


class PlainTextModel(HuggingFace):
    """Without a mask, as a language model is often exported."""

    def forward(self, ids: Tensor) -> Tensor:
        state: Tensor = self.model(input_ids=ids, use_cache=False, return_dict=False)[0]
        return state


class ImageModel(HuggingFace):
    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels, return_dict=False)[0]
        return logits


def _attention(eager: bool) -> dict[str, Any]:
    return {"attn_implementation": "eager" if eager else "sdpa"}


def bert(eager: bool = False) -> nn.Module:
    hugging_face = pytest.importorskip("transformers")
    BertConfig, BertModel = hugging_face.BertConfig, hugging_face.BertModel

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **sizes, **_attention(eager))
    return TextModel(BertModel(config, add_pooling_layer=False))


def albert() -> nn.Module:
    hugging_face = pytest.importorskip("transformers")
    AlbertConfig, AlbertModel = hugging_face.AlbertConfig, hugging_face.AlbertModel

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    config = AlbertConfig(vocab_size=VOCABULARY, embedding_size=8, max_position_embeddings=16, **sizes)
    return TextModel(AlbertModel(config, add_pooling_layer=False))


def distilbert() -> nn.Module:
    hugging_face = pytest.importorskip("transformers")
    DistilBertConfig, DistilBertModel = hugging_face.DistilBertConfig, hugging_face.DistilBertModel

    config = DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=16, n_layers=2, n_heads=2, dim=16, hidden_dim=32
    )
    return TextModel(DistilBertModel(config))


def _gpt2(eager: bool = False) -> nn.Module:
    hugging_face = pytest.importorskip("transformers")
    GPT2Config, GPT2LMHeadModel = hugging_face.GPT2Config, hugging_face.GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, **_attention(eager))
    return GPT2LMHeadModel(config)


def gpt2() -> nn.Module:
    return TextModel(_gpt2(), use_cache=False)


def gpt2_plain() -> nn.Module:
    return PlainTextModel(_gpt2())


def bert_eager() -> nn.Module:
    return bert(eager=True)


def gpt2_eager() -> nn.Module:
    return TextModel(_gpt2(eager=True), use_cache=False)


def vit_huggingface() -> nn.Module:
    hugging_face = pytest.importorskip("transformers")
    ViTConfig, ViTForImageClassification = hugging_face.ViTConfig, hugging_face.ViTForImageClassification

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    return ImageModel(ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)))


Example = Callable[[int], tuple[Tensor, ...]]


def image(side: int) -> Example:
    return lambda rows: (torch.randn(rows, 3, side, side),)


def steps(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 5, 6),)


def text(rows: int) -> tuple[Tensor, ...]:
    lengths = torch.arange(rows) % (TOKENS - 2) + 2
    return torch.randint(VOCABULARY, (rows, TOKENS)), (torch.arange(TOKENS) < lengths[:, None]).long()


def plain_text(rows: int) -> tuple[Tensor, ...]:
    return text(rows)[:1]


def zoo_text(rows: int) -> tuple[Tensor, ...]:
    ids, mask = text(rows)
    return ids, (torch.arange(TOKENS) > 3).long().repeat(rows, 1), mask


def zoo_bert() -> nn.Module:
    return transformers.BertEncoder(width=16, depth=2, heads=2, max_tokens=16)


@dataclass(frozen=True)
class Model:
    """An architecture, and inputs of so many rows."""

    name: str
    make: Callable[[], nn.Module]
    example: Example

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(7)
            module = self.make().eval()
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, std=0.1)
                    nn.init.normal_(layer.running_mean, std=0.1)
                    nn.init.uniform_(layer.running_var, 0.5, 1.5)
        return module.requires_grad_(False)

    def inputs(self, rows: int) -> tuple[Tensor, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(rows)
            return self.example(rows)


MODELS = {
    model.name: model
    for model in (
        Model("alexnet", AlexNet, image(64)),
        Model("vgg19", vgg19, image(32)),
        Model("resnet18", lambda: resnet.ResNet((1, 1, 1, 1), bottlenecks=False, classes=10), image(32)),
        Model("resnet50", lambda: resnet.ResNet((1, 1, 1, 1), bottlenecks=True, classes=10), image(32)),
        Model("resnext", resnext, image(32)),
        Model("densenet", DenseNet, image(32)),
        Model("squeezenet", squeezenet, image(34)),
        Model("shufflenet", ShuffleNet, image(32)),
        Model("mobilenet_v2", mobilenet.MobileNetV2, image(32)),
        Model("mobilenet_v3", mobilenet_v3, image(32)),
        Model("efficientnet", efficientnet, image(32)),
        Model("vit", vit, image(16)),
        Model("unet", lambda: convnets.UNet(base=4, depth=2), image(16)),
        Model("zoo_bert", zoo_bert, zoo_text),
        Model("bert", bert, text),
        Model("bert_eager", bert_eager, text),
        Model("albert", albert, text),
        Model("distilbert", distilbert, text),
        Model("gpt2", gpt2, text),
        Model("gpt2_eager", gpt2_eager, text),
        Model("gpt2_plain", gpt2_plain, plain_text),
        Model("vit_huggingface", vit_huggingface, image(16)),
        Model("lstm", lstm, steps),
        Model("lstm_two_ways", lstm_two_ways, steps),
        Model("gru", gru, steps),
        Model("gru_two_ways", gru_two_ways, steps),
    )
}
