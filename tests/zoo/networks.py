"""The list: one builder and one example per network. Weights are random, sizes small."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """`library/name`, how it is built, and what its forward gets."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]

    @property
    def id(self) -> str:
        return f"{self.library}/{self.name}"


REGNETS = ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
QUANTIZED = (
    *("googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet50"),
    *("resnext101_32x8d", "resnext101_64x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *("shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
)
"""As they are before they are quantized, with the stubs in place."""
TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11_bn", "vit_b_16", "wide_resnet50_2", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
    *("deeplabv3_mobilenet_v3_large", "r3d_18", "mc3_18", "r2plus1d_18", "s3d"),
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"),
    *("ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    *("mvit_v1_b", "mvit_v2_s", "raft_small", "raft_large", "ssd300_vgg16", "swin3d_t"),
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2"),
    *("fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn_v2"),
    *("convnext_small", "convnext_base", "convnext_large", "densenet161", "densenet169"),
    *("densenet201", *(f"efficientnet_b{n}" for n in range(1, 8)), "efficientnet_v2_m"),
    *("efficientnet_v2_l", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v3_large"),
    *(f"regnet_{kind}_{size}" for kind in "xy" for size in REGNETS),
    *("regnet_y_128gf", "resnet34", "resnet101", "resnet152", "wide_resnet101_2"),
    *("resnext101_32x8d", "resnext101_64x4d", "squeezenet1_0", "vgg11", "vgg13", "vgg13_bn"),
    *("shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "vgg16", "vgg16_bn"),
    *("vgg19", "vgg19_bn", "swin_s", "swin_b", "swin_v2_s", "swin_v2_b", "swin3d_s", "swin3d_b"),
    *("vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "fcn_resnet101", "deeplabv3_resnet50"),
    *("deeplabv3_resnet101", *(f"quantized_{name}" for name in QUANTIZED)),
)
"""All models that torchvision lists."""
SIDES = {
    **dict.fromkeys(("inception_v3", "quantized_inception_v3"), 96),
    **dict.fromkeys(("maxvit_t", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"), 224),
    **dict.fromkeys(("s3d", "mvit_v1_b", "mvit_v2_s"), 224),
    **dict.fromkeys(("raft_small", "raft_large"), 128),
}
FRAMES = {"s3d": 16, "mvit_v1_b": 16, "mvit_v2_s": 16}
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_", "swin3d_")
DETECTION = ("rcnn", "retinanet", "fcos", "ssd")

TIMM = (
    *("beit_base_patch16_224", "botnet26t_256", "caformer_s18", "cait_xxs24_224", "coat_lite_tiny"),
    *("coatnet_pico_rw_224", "convit_tiny", "convmixer_768_32", "convnext_atto", "crossvit_9_240"),
    *("cspresnet50", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla34", "dpn68"),
    *("edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_lite0"),
    *("efficientvit_b0", "efficientvit_m0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf"),
    *("gcvit_xxtiny", "gernet_s", "ghostnet_100", "gmixer_24_224", "hardcorenas_a"),
    *("hgnetv2_b0", "hrnet_w18_small", "inception_next_tiny", "inception_v4", "lcnet_050"),
    *("levit_128s", "mambaout_femto", "maxxvit_rmlp_nano_rw_256", "mixer_s32_224", "mixnet_s"),
    *("mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny"),
    *("nest_tiny", "nextvit_small", "nfnet_f0", "pit_ti_224", "poolformer_s12", "poolformerv2_s12"),
    *("pvt_v2_b0", "rdnet_tiny", "regnety_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9"),
    *("res2net50_26w_4s", "resmlp_12_224", "resnest14d", "resnet18", "resnetv2_50", "rexnet_100"),
    *("selecsls42", "semnasnet_075", "seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18"),
    *("starnet_s1", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "tiny_vit_5m_224.dist_in22k_ft_in1k", "tinynet_e"),
    "tnt_s_legacy_patch16_224",
    *("tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "vit_relpos_small_patch16_224"),
    *("vit_tiny_patch16_224", "volo_d1_224", "vovnet39a", "xception41", "xcit_nano_12_p16_224"),
    *("cpubone_nano", "csatv2", "cspnext_tiny", "deepseek_vit_412m", "efficientvim_m1"),
    *("vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224", "fasternet_t0"),
    *("gemma4_vit_167m", "hiera_tiny_224", "hieradet_small", "sam2_hiera_tiny", "iformer_t"),
    *("inception_resnet_v2", "inception_v3", "lcnetv2_small", "lowformer_b0", "mobilenetv5_base"),
    *("naflexvit_base_patch16_gap", "nasnetalarge", "pnasnet5large", "qwen3_vit_88m"),
    *("legacy_seresnet18", "swinv2_cr_tiny_224", "vit_tiny_r_s16_p8_224"),
    *("samvit_base_patch16_224", "vitamin_small_224", "legacy_xception"),
)
"""One or more of every module file of timm 1.0.31."""
TIMM_SIDES = {
    **dict.fromkeys(("nasnetalarge", "pnasnet5large", "inception_resnet_v2"), 128),
    **dict.fromkeys(("inception_v3", "legacy_xception"), 128),
    **dict.fromkeys(("gemma4_vit_167m", "qwen3_vit_88m", "naflexvit_base_patch16_gap"), 192),
    **{"csatv2": 256, "sam2_hiera_tiny": 224},
}
"""Smaller images than those they were made for, where they take them."""

TEXT = (
    *("albert", "arcee", "bart", "bert", "bloom", "codegen", "cohere", "deberta", "deberta-v2"),
    *("distilbert", "electra", "ernie", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text"),
    *("glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "llama"),
    *("mamba", "mbart", "mistral", "mixtral", "modernbert", "mpnet", "mpt", "nemotron", "olmo"),
    "olmoe",
    *("olmo2", "opt", "pegasus", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "roberta", "roformer", "smollm3", "stablelm", "starcoder2", "t5"),
)
ENCODERS = (
    *("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert"),
    *("mpnet", "roberta", "roformer"),
)
IMAGES = ("vit", "deit", "beit", "swin", "segformer", "convnext", "dinov2", "pvt")
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), 2
    ),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "ffn_dim": 48},
    **{"num_key_value_heads": 2, "num_experts": 4, "num_local_experts": 4, "d_kv": 8},
    **{"vocab_size": 99, "max_position_embeddings": 64, "image_size": 32, "patch_size": 8},
    **{"n_positions": 64, "num_labels": 5},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8, "rotary_dim": 8},
}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "swin": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 2,
        "patch_size": 4,
    },
    "segformer": {
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1] * 4,
        "num_attention_heads": [1, 2, 4, 8],
    },
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "patch_size": 2},
    "pvt": {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1] * 4,
        "num_attention_heads": [1, 2, 4, 8],
    },
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mixtral": {"intermediate_size": 24},
    "qwen3_moe": {"num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts_per_tok": 2},
    "olmoe": {"num_experts_per_tok": 2, "intermediate_size": 24},
}


def _vision(name: str) -> Network:
    return Network(
        "torchvision", name, partial(_from_torchvision, name), partial(_for_vision, name)
    )


def _from_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    more: dict[str, Any] = {}
    if any(word in name for word in ("googlenet", "inception_v3")):
        more = {"init_weights": False}
        if name == "googlenet":
            more["aux_logits"] = False  # as torchvision loads its trained weights
    elif any(word in name for word in (*DETECTION, "fcn_", "deeplab", "lraspp")):
        more = {"weights_backbone": None}
        if "rcnn" in name:
            more["box_score_thresh"] = 0.0  # or random weights find nothing to compare
        elif any(word in name for word in DETECTION):
            more["score_thresh"] = 0.0
    model: nn.Module = get_model(name, weights=None, **more)
    return model


def _for_vision(name: str) -> Any:
    side = SIDES.get(name, 64)
    if any(word in name for word in VIDEO):
        return _noise(1, 3, FRAMES.get(name, 4), side, side)
    if name.startswith("raft"):
        return _noise(1, 3, side, side), _noise(1, 3, side, side).flip(3)
    if any(word in name for word in DETECTION):
        return ([_noise(3, 96, 96)],)
    return _noise(1, 3, side, side)


def _noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _from_timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _for_timm(name: str) -> Tensor:
    import timm

    side = TIMM_SIDES.get(name) or timm.get_pretrained_cfg(name).input_size[-1]
    return _noise(1, 3, side, side)


def _from_transformers(kind: str) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(kind)
    known = set(config.to_dict())
    own = {**{k: v for k, v in SIZES.items() if k in known}, **OWN.get(kind, {})}
    config = transformers.AutoConfig.for_model(kind, **own)
    if kind == "deit":  # one config, two classes: the one without a teacher
        config.architectures = ["DeiTForImageClassification"]
    auto = transformers.AutoModelForCausalLM
    if kind in IMAGES:
        auto = transformers.AutoModelForImageClassification
    elif kind in ENCODERS:
        auto = transformers.AutoModelForSequenceClassification
    elif config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    model: nn.Module = auto.from_config(config)
    if any(word in kind for word in ("moe", "mixtral")):
        model.set_experts_implementation("eager")  # the fused product of experts knows no float64
    return model


def _for_transformers(kind: str) -> dict[str, Any]:
    if kind in IMAGES:
        return {"pixel_values": _noise(1, 3, 32, 32)}
    words = torch.arange(12)[None] + 3
    both = {"decoder_input_ids": words} if kind in ("t5", "bart", "mbart", "pegasus") else {}
    return (
        {"input_ids": words, "use_cache": False, **both}
        if kind not in ENCODERS
        else {"input_ids": words}
    )


def networks() -> Iterator[Network]:
    """All whose library is installed."""
    yield from map(_vision, TORCHVISION)
    if importlib.util.find_spec("timm") is not None:
        for name in TIMM:
            yield Network("timm", name, partial(_from_timm, name), partial(_for_timm, name))
    for kind in (*TEXT, *IMAGES):
        build, example = partial(_from_transformers, kind), partial(_for_transformers, kind)
        yield Network("transformers", kind, build, example)
