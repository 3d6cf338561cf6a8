"""Architectures of the `transformers` package, as they come: they share launches, and answer as plain modules do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spacetime.backends.executables import Call, CohortExecutable
from spacetime.capture.selfcheck import problem
from spacetime.device import Partition
from spacetime.plan import Lane, RequestView, Segment
from spacetime.runtime.prepare import Preparer
from tests.runtime.models import plain

VOCABULARY, STEPS = 60, 9
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 0}
DECODER = TEXT | {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
IMAGE = SIZES | {"image_size": 16, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
PYRAMID = STAGES | {"num_attention_heads": [1, 1, 1, 1], "image_size": 64}

Draw = Callable[[int], tuple[Tensor, ...]]


def tokens(rows: int) -> tuple[Tensor, ...]:
    return (torch.randint(3, VOCABULARY, (rows, STEPS)),)


def masked_tokens(rows: int) -> tuple[Tensor, ...]:
    lengths = torch.randint(3, STEPS + 1, (rows, 1))
    return (*tokens(rows), (torch.arange(STEPS) < lengths).long())


def images(size: int) -> Draw:
    return lambda rows: (torch.randn(rows, 3, size, size),)


# What it is called, its model and config (of transformers), the config's options, its inputs.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], Draw]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT | {"output_hidden_states": True}, masked_tokens),
    "distilbert": ("DistilBertModel", "DistilBertConfig", TEXT | {"dim": 16, "hidden_dim": 24}, masked_tokens),
    "albert": ("AlbertModel", "AlbertConfig", TEXT | {"embedding_size": 8}, masked_tokens),
    "deberta": ("DebertaV2Model", "DebertaV2Config", TEXT | {"relative_attention": True}, masked_tokens),
    "convbert": ("ConvBertModel", "ConvBertConfig", TEXT | {"embedding_size": 16}, masked_tokens),
    "modernbert": ("ModernBertModel", "ModernBertConfig", TEXT | {"cls_token_id": 1, "sep_token_id": 2}, masked_tokens),
    "t5 encoder": ("T5EncoderModel", "T5Config", TEXT | {"d_model": 16, "d_kv": 8, "d_ff": 24}, masked_tokens),
    "gpt2": ("GPT2Model", "GPT2Config", DECODER | GPT, tokens),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"num_key_value_heads": 1}, masked_tokens),
    "qwen": ("Qwen3Model", "Qwen3Config", DECODER | {"num_key_value_heads": 1, "head_dim": 8}, masked_tokens),
    "opt": ("OPTModel", "OPTConfig", DECODER | {"ffn_dim": 24, "word_embed_proj_dim": 16}, masked_tokens),
    "mamba": ("MambaModel", "MambaConfig", DECODER | {"state_size": 4}, tokens),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, images(16)),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGE, images(16)),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2},
        images(16),
    ),
    "convnext": ("ConvNextModel", "ConvNextConfig", STAGES, images(32)),
    "resnet": ("ResNetModel", "ResNetConfig", STAGES | {"embedding_size": 8}, images(32)),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", PYRAMID, images(64)),
    "clip text": ("CLIPTextModel", "CLIPTextConfig", TEXT | {"eos_token_id": 2}, masked_tokens),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        SIZES | {"conv_dim": [8], "conv_stride": [5], "conv_kernel": [10], "num_conv_pos_embedding_groups": 2},
        lambda rows: (torch.randn(rows, 160),),
    ),
}
QUICK = ("bert", "gpt2")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_tenants_of_a_family_share_launches_and_answer_as_plain_modules(family: str) -> None:
    plains = [build(family, seed) for seed in range(2)]
    _, _, _, draw = FAMILIES[family]
    plain(plains[0], *draw(2))  # as people try a model before they serve it: some install their hooks then
    torch.manual_seed(3)
    preparer, example = Preparer(), draw(2)
    prepared = [
        preparer.prepare(f"t{seed}", tenant, example, exact=False) for seed, tenant in enumerate(served(family, plains))
    ]
    assert not any(each.reason for each in prepared), prepared
    assert isinstance(prepared[0].executable, CohortExecutable)
    requests = [(0, draw(2)), (1, draw(1)), (0, draw(1))]
    views = tuple(
        [RequestView(number, f"t{tenant}", len(args[0]), 0) for number, (tenant, args) in enumerate(requests)]
    )
    lane = Lane("cohort", views, (Segment(Partition(1, 1, 1)),), fused=True)
    outcomes = prepared[0].executable.run(lane, [Call.of(args) for _, args in requests])
    for (tenant, args), outcome in zip(requests, outcomes, strict=True):
        expected = plain(plains[tenant], *args)
        assert outcome.error is None and type(outcome.value) is type(expected)
        assert problem(pytree.tree_leaves(outcome.value), pytree.tree_leaves(expected)) is None


def build(family: str, seed: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model, config, options, _ = FAMILIES[family]
    torch.manual_seed(seed)
    module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    return module


def served(family: str, plains: list[nn.Module]) -> list[nn.Module]:
    """The same models again: a tenant's parameters become its runtime's."""
    tenants = [build(family, seed) for seed in range(len(plains))]
    for tenant in tenants:
        plain(tenant, *FAMILIES[family][3](1))
    return tenants
