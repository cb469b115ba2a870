"""Z-Image as ComfyUI builds it: is it recognised, do LoRA names fit, where do soft tokens stand, and does its
text encoder, with small random weights, see what transformers' does?"""

from typing import Any

import comfy.lora
import comfy.sd1_clip
import comfy.supported_models as kinds
import comfy.text_encoders.llama as llama
import comfy.text_encoders.z_image as z_image
import torch
from inside_tokens import clip_of
from nodes import CLIPTextEncode

PROMPTS = ("a photo of a nurse", "", "a (nurse:1.2)\nsmiling", "two\n\nlines")
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CONFIG = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560,
    "n_layers": 30, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


def expected_layers() -> dict[str, tuple[int, int]]:
    """Our names of all layers of a LoRA, with (out, in)."""
    names = {
        f"lora_transformer_layers_{i}_attention_{part}": (3840, 3840)
        for i in range(30)
        for part in ("to_q", "to_k", "to_v", "to_out_0")
    }
    text = {"q_proj": (4096, 2560), "k_proj": (1024, 2560), "v_proj": (1024, 2560), "o_proj": (2560, 4096)}
    rest = {"gate_proj": (9728, 2560), "up_proj": (9728, 2560), "down_proj": (2560, 9728)}
    for i in range(36):
        names |= {f"lora_te_layers_{i}_self_attn_{part}": shape for part, shape in text.items()}
        names |= {f"lora_te_layers_{i}_mlp_{part}": shape for part, shape in rest.items()}
    return names


def recognised(application: Any) -> dict[str, Any]:
    """What is found of a Z-Image without weights; and of its stock LoRA names."""
    setting = kinds.ZImage(CONFIG)
    setting.set_inference_dtype(torch.bfloat16, None)
    model = type("Model", (), {"model": setting.get_model({}, "", device=torch.device("meta"))})
    encoder = z_image.ZImageTEModel(device="meta", dtype=torch.bfloat16)
    clip = type("Clip", (), {"cond_stage_model": encoder})
    wanted = expected_layers()
    shapes = application.layer_shapes(model, clip, wanted)
    base = application.describe(model, clip)
    stock = comfy.lora.model_lora_keys_unet(model.model, {})
    exported = [f"diffusion_model.layers.{i}.attention.{p}" for i in range(30) for p in ("to_q", "to_out.0")]
    return {
        "architecture": base.architecture,
        "widths": dict(base.widths),
        "layers": len(wanted),
        "wrong": sorted(name for name in wanted if shapes.get(name) != wanted[name])[:4],
        "stock": sorted(name for name in exported if name not in stock)[:4],
    }


def tokens(ours: Any) -> dict[str, Any]:
    """Prompts whose tokens are not the template's with the rows behind the beginning of the user's turn."""
    torch.manual_seed(1)
    rows = torch.randn(5, 2560)
    tokenizer = z_image.ZImageTokenizer()
    stock = clip_of(tokenizer)
    clip = ours.add(stock, {"qwen3_4b": rows}, "test", False, False)
    words = tokenizer.qwen3_4b.tokenizer
    begin = words("<|im_start|>user\n")["input_ids"]
    wrong = []
    for prompt in PROMPTS:
        (chunk,) = clip.tokenize(prompt)["qwen3_4b"]
        ids = words(TEMPLATE.format(prompt))["input_ids"]
        expected = [*ids[: len(begin)], *rows, *ids[len(begin) :]]
        found = [entry[0] for entry in chunk]
        same = [torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(found, expected)]
        if len(found) != len(expected) or not all(same) or {entry[1] for entry in chunk} != {1.0}:
            wrong.append(prompt)
    plain = clip.tokenize("a", llama_template="{}")["qwen3_4b"]
    joined = clip.tokenize("a nurse")["qwen3_4b"]
    joined += clip.tokenize("a street")["qwen3_4b"]
    CLIPTextEncode().encode(clip, "a nurse")
    negative = ours.for_negative(clip).tokenize("a nurse")
    return {
        "begin": begin,
        "wrong": wrong,
        "without_template": sum(torch.is_tensor(entry[0]) for chunk in plain for entry in chunk),
        "joined": [sum(torch.is_tensor(entry[0]) for entry in chunk) for chunk in joined],
        "encoded": sum(torch.is_tensor(entry[0]) for entry in clip.cond_stage_model.seen[-1]["qwen3_4b"][0]),
        "negative": negative == stock.tokenize("a nurse"),
    }


def encoded() -> float:
    """Largest difference of ComfyUI's hidden states and transformers', for the same weights and rows."""
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(2)
    rows = torch.randn(4, SMALL["hidden_size"])
    theirs = Qwen3Model(
        Qwen3Config(
            **SMALL, head_dim=128, vocab_size=151936, initializer_range=0.2, rms_norm_eps=1e-6,
            rope_theta=1000000.0,
        )
    ).eval()  # fmt: skip
    encoder = comfy.sd1_clip.SDClipModel(
        layer="hidden", layer_idx=-2, textmodel_json_config=SMALL, special_tokens={"pad": 151643},
        layer_norm_hidden_state=False, model_class=llama.Qwen3_4B, enable_attention_masks=True,
        return_attention_masks=True, dtype=torch.float32,
    )  # fmt: skip
    missing, _ = encoder.transformer.model.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing, missing
    words = z_image.ZImageTokenizer().qwen3_4b.tokenizer
    ids = words(TEMPLATE.format("a photo of a nurse"))["input_ids"]
    chunk = [*((i, 1.0) for i in ids[:3]), *((row, 1.0) for row in rows), *((i, 1.0) for i in ids[3:])]
    found = encoder.encode_token_weights([chunk])[0]
    table = theirs.embed_tokens.weight
    embedded = torch.cat([table[ids[:3]], rows, table[ids[3:]]])[None]
    with torch.no_grad():
        expected = theirs(inputs_embeds=embedded, output_hidden_states=True).hidden_states[-2]
    return float((found - expected).abs().max() / expected.abs().max())


def language(application: Any, ours: Any) -> dict[str, Any]:
    return {"model": recognised(application), "tokens": tokens(ours), "encoded": encoded()}
