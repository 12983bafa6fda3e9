"""Names of the networks in the list, and what they need besides."""

from __future__ import annotations

from typing import Any

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
    *(
        "afmoe",
        "apertus",
        "bitnet",
        "blenderbot",
        "cohere2",
        "convbert",
        "deepseek_v2",
        "diffllama",
    ),
    *("doge", "ernie4_5", "ernie4_5_moe", "exaone_moe", "falcon_h1", "falcon_mamba", "flex_olmo"),
    *("fnet", "funnel", "gemma4_text", "glm4", "glm4_moe", "glm_moe_dsa", "gpt_oss", "granitemoe"),
    *("hunyuan_v1_dense", "hy_v3", "jais2", "jamba", "jetmoe", "lfm2", "longt5", "m2m_100"),
    *("marian", "minimax", "minimax_m2", "ministral3", "mobilebert", "mt5", "nanochat"),
    *("nemotron_h", "nystromformer", "olmo3", "olmo_hybrid", "phimoe", "qwen3_5_moe_text"),
    *("qwen3_5_text", "qwen3_next", "recurrent_gemma", "rembert", "rwkv", "seed_oss", "solar_open"),
    *("squeezebert", "switch_transformers", "umt5", "vaultgemma", "xlm-roberta", "xlnet"),
)
ENCODERS = (
    *("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "modernbert"),
    *("mpnet", "roberta", "roformer", "convbert", "fnet", "funnel", "mobilebert", "nystromformer"),
    *("rembert", "squeezebert", "xlm-roberta", "xlnet"),
)
BOTH = ("t5", "bart", "pegasus", "blenderbot", "m2m_100", "marian", "switch_transformers")
"""Words in the names of networks with an encoder and a decoder."""
IMAGES = (
    *("vit", "deit", "beit", "swin", "segformer", "convnext", "dinov2", "pvt", "focalnet", "ijepa"),
    *("mobilevit", "poolformer", "resnet", "regnet", "mobilenet_v2", "efficientnet", "vit_msn"),
)
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
    **dict.fromkeys(
        ("afmoe", "exaone_moe", "flex_olmo", "gpt_oss", "hy_v3", "minimax_m2"),
        {"num_experts_per_tok": 2},
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_moe_text"),
        {
            **{"num_experts_per_tok": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    **dict.fromkeys(
        ("deepseek_v2", "glm_moe_dsa"),
        {
            **{"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "v_head_dim": 8},
            **{"qk_nope_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4},
            **{"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        },
    ),
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99},
}
