"""Networks of transformers that need more than a name: images and words, sound, detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SMALL = {
    **{"hidden_size": 32, "intermediate_size": 48},
    **{"num_hidden_layers": 2, "num_attention_heads": 4},
}
WORDS = {**SMALL, "vocab_size": 99, "max_position_embeddings": 64}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 8}


def _noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _tokens() -> Tensor:
    return torch.arange(12)[None] + 3


def _both(layers: int) -> dict[str, int]:
    """Of an encoder and a decoder."""
    sizes = {"layers": layers, "attention_heads": 4, "ffn_dim": 48}
    return {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()}


def _image() -> dict[str, Any]:
    return {"pixel_values": _noise(1, 3, 32, 32)}


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    positions = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 30}
    config = WhisperConfig(vocab_size=99, d_model=32, **_both(2), **tokens, **positions)
    return WhisperForConditionalGeneration(config)


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    words = {**WORDS, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(text_config=words, vision_config=PATCHES, projection_dim=16))


def siglip() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(SiglipConfig(text_config=WORDS, vision_config=PATCHES))


def dinov3_vit() -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(**PATCHES))


def convnextv2() -> nn.Module:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, patch_size=2)
    return ConvNextV2ForImageClassification(config)


def swinv2() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": 32}
    return Swinv2ForImageClassification(Swinv2Config(window_size=2, patch_size=4, **sizes))


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    front = {"conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SMALL, **front, **positions))


def deepseek_v3() -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    experts = {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2}
    groups = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    ranks = {"q_lora_rank": 12, "kv_lora_rank": 10, "num_key_value_heads": 4}
    widths = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    config = DeepseekV3Config(vocab_size=99, **SMALL, **experts, **groups, **ranks, **widths)
    model = DeepseekV3ForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    backbone = ResNetConfig(**sizes, out_features=["stage2"])
    queries = {"d_model": 32, "num_queries": 5, "use_timm_backbone": False}
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone, **queries, **_both(1)))


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "whisper": (
        whisper,
        lambda: {
            "input_features": _noise(1, 8, 40),
            "decoder_input_ids": _tokens(),
            "use_cache": False,
        },
    ),
    "clip": (clip, lambda: {"input_ids": _tokens(), **_image()}),
    "siglip": (siglip, lambda: {"input_ids": _tokens(), **_image()}),
    "dinov3_vit": (dinov3_vit, _image),
    "convnextv2": (convnextv2, _image),
    "swinv2": (swinv2, _image),
    "wav2vec2": (wav2vec2, lambda: {"input_values": _noise(1, 400)}),
    "deepseek_v3": (deepseek_v3, lambda: {"input_ids": _tokens(), "use_cache": False}),
    "detr": (detr, lambda: {"pixel_values": _noise(1, 3, 64, 64)}),
}
"""Name -> how it is built, and what its forward gets."""
