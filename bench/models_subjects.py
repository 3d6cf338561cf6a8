"""The models of bench/models.py: R variants of an architecture with weights of their own, and inputs that fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spacetime import zoo
from spacetime.zoo.transformers import BERT_VOCABULARY, BertEncoder

BERT_BASE = "bert_base"
SUBJECTS = ("mlp", "gru", "mobilenet_v2", "resnet18", "resnet50", BERT_BASE)
TOKENS = 128
IMAGE_SIDES = {"cpu": 64, "cuda": 224}  # a CPU would spend the run's time on pixels
NOTE = (
    f"images are {IMAGE_SIDES['cpu']} pixels square on a CPU, {IMAGE_SIDES['cuda']} on a GPU; {BERT_BASE}: 12 layers "
    f"of 768, {TOKENS} tokens, {BERT_VOCABULARY} words; gru: 8 steps of 128 to 256; mlp: 4 x 256"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def variants(model: str, count: int, device: str, dtype: str) -> Iterator[nn.Module]:
    """Modules of one architecture. Later ones are copies of the first with other weights: they are made in no time."""
    first = _build(model).to(device, DTYPES[dtype])
    for index in range(count):
        module = first if index == count - 1 else copy.deepcopy(first)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.mul_(1 + (index + 1) * 1e-3)
        yield module.requires_grad_(False)


def _build(model: str) -> nn.Module:
    if model != BERT_BASE:
        return zoo.build(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return BertEncoder(width=768, depth=12, heads=12).eval()


def example(model: str, rows: int, device: str, dtype: str, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of one request, on the device."""
    generator = torch.Generator().manual_seed(seed)
    if model == BERT_BASE:
        ids = torch.randint(BERT_VOCABULARY, (rows, TOKENS), generator=generator)
        made: tuple[Tensor, ...] = (ids, torch.zeros_like(ids), torch.ones_like(ids))
    else:
        made = zoo.example(model, rows, seed)
        if made[0].ndim == 4:
            side = IMAGE_SIDES[device.partition(":")[0]]
            made = (torch.randn(rows, 3, side, side, generator=generator),)
    return tuple(each.to(device, DTYPES[dtype] if each.is_floating_point() else each.dtype) for each in made)


def weight_bytes(model: str, dtype: str) -> int:
    """Of one variant; nothing is allocated."""
    with torch.device("meta"):
        module = BertEncoder(width=768, depth=12, heads=12) if model == BERT_BASE else zoo.ZOO[model].build()
    return sum(tensor.numel() for tensor in module.parameters()) * DTYPES[dtype].itemsize
