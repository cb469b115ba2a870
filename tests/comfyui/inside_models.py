"""SD 1.5, SD 2 and SDXL as ComfyUI builds them, without weights: are they recognised, do LoRA names fit?"""

from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models as kinds
import comfy.text_encoders.sd2_clip as sd2
import torch

COMMON = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "model_channels": 320,
}
SMALL = {
    **COMMON,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "adm_in_channels": None,
}
LARGE = {
    **COMMON,
    "num_res_blocks": [2] * 3,
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0] * 2 + [2] * 2 + [10] * 2,
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
HEADS = {"num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
MODELS = {  # architecture -> class, configuration, text encoder, tokenizer, widths of its encoders
    "sd1": (
        kinds.SD15,
        {**SMALL, "context_dim": 768, "use_linear_in_transformer": False},
        comfy.sd1_clip.SD1ClipModel,
        comfy.sd1_clip.SD1Tokenizer,
        {"clip_l": 768},
    ),
    "sd2": (
        kinds.SD20,
        {**SMALL, **HEADS, "context_dim": 1024},
        sd2.SD2ClipModel,
        sd2.SD2Tokenizer,
        {"clip_h": 1024},
    ),
    "sdxl": (
        kinds.SDXL,
        {**LARGE, **HEADS, "context_dim": 2048},
        comfy.sdxl_clip.SDXLClipModel,
        comfy.sdxl_clip.SDXLTokenizer,
        {"clip_l": 768, "clip_g": 1280},
    ),
}
ENCODERS = {  # kohya prefix -> layers, width, width of the feed-forward layer
    "sd1": {"te": (12, 768, 3072)},
    "sd2": {"te": (23, 1024, 4096)},
    "sdxl": {"te1": (12, 768, 3072), "te2": (32, 1280, 5120)},
}
DEPTHS = {"sd1": (1, 1, 1, 0), "sd2": (1, 1, 1, 0), "sdxl": (0, 2, 10)}  # transformer blocks of each level
CONTEXT = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
WIDTHS = (320, 640, 1280, 1280)


def large_models(application: Any, embeddings: Path) -> dict[str, tuple[dict[str, Any], Any, dict[str, int]]]:
    """architecture -> what was found, its tokenizer, the widths of its encoders."""
    results = {}
    for name, (kind, config, encoder, tokenizer, widths) in MODELS.items():
        setting = kind(config)
        setting.set_inference_dtype(torch.float16, None)
        network = setting.get_model({}, "", device=torch.device("meta"))
        model = type("Model", (), {"model": network})
        clip = type("Clip", (), {"cond_stage_model": encoder(device="meta", dtype=torch.float16)})
        wanted = expected_layers(name)
        shapes = application.layer_shapes(model, clip, wanted)
        base = application.describe(model, clip)
        wrong = sorted(layer for layer in wanted if shapes.get(layer) != wanted[layer])
        result = {"architecture": base.architecture, "widths": dict(base.widths), "wrong": wrong[:4]}
        result["layers"] = len(wanted)
        results[name] = (result, tokenizer(embedding_directory=str(embeddings)), widths)
    return results


def expected_layers(name: str) -> dict[str, tuple[int, int]]:
    """kohya name -> (out, in), by the architectures alone."""
    table: dict[str, tuple[int, int]] = {}
    for prefix, (layers, width, inner) in ENCODERS[name].items():
        for start in (f"lora_{prefix}_text_model_encoder_layers_{layer}" for layer in range(layers)):
            table |= {f"{start}_self_attn_{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            table |= {f"{start}_mlp_fc1": (inner, width), f"{start}_mlp_fc2": (width, inner)}
    depths = DEPTHS[name]
    places = [("mid_block_attentions_0", WIDTHS[len(depths) - 1], max(depths))]
    for level, depth in enumerate(depths):
        places += [(f"down_blocks_{level}_attentions_{i}", WIDTHS[level], depth) for i in range(2)]
        up = len(depths) - 1 - level
        places += [(f"up_blocks_{up}_attentions_{i}", WIDTHS[level], depth) for i in range(3)]
    for place, width, depth in places:
        for block in range(depth):
            for attention, source in (("attn1", width), ("attn2", CONTEXT[name])):
                start = f"lora_unet_{place}_transformer_blocks_{block}_{attention}"
                table |= {f"{start}_to_q": (width, width), f"{start}_to_out_0": (width, width)}
                table |= {f"{start}_to_k": (width, source), f"{start}_to_v": (width, source)}
    return table
