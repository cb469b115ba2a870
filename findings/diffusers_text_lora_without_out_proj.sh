#!/usr/bin/env bash
# diffusers 0.42.1 (with peft 0.21.2, transformers 5.24.0), seen on 27 November 2026
#
# A kohya LoRA of Stable Diffusion's text encoder may train any of its linear layers. `load_lora_weights` decides
# by the layers named out_proj alone whether a text encoder's attention has a LoRA. Of a file that has q_proj,
# k_proj and v_proj (and the MLP, so that the file is accepted), but no out_proj, it loads the MLP and drops query,
# key and value: no error, and no warning that names them. The same file with out_proj arrives whole.
#
# Run: bash findings/diffusers_text_lora_without_out_proj.sh      (downloads about 1 GB into a temporary folder)
# Ends with 0 while this is so, with 1 once it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.12.1 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0
cat > "$work/seen.py" <<'PY'
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH, RANK = 32, 4
MLP, QKV = ("mlp_fc1", "mlp_fc2"), ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")


def layers_with_a_lora(names):
    """Kinds of layers of a small text encoder that get a LoRA of a kohya file with these layers."""
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=4,
                       vocab_size=100, projection_dim=WIDTH)
    )
    unet = UNet2DConditionModel(
        block_out_channels=(WIDTH,), down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=WIDTH, attention_head_dim=4, layers_per_block=1,
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(), text_encoder=text, tokenizer=None, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    file = {}
    for name in names:
        key = f"lora_te_text_model_encoder_layers_0_{name}"
        file[f"{key}.lora_down.weight"] = torch.randn(RANK, WIDTH)
        file[f"{key}.lora_up.weight"] = torch.randn(WIDTH, RANK)
        file[f"{key}.alpha"] = torch.tensor(float(RANK))
    pipe.load_lora_weights(file)
    found = {key.split(".lora_A")[0].split("layers.0.")[1] for key in text.state_dict() if ".lora_A" in key}
    return sorted(found)


without, whole = layers_with_a_lora((*MLP, *QKV)), layers_with_a_lora((*MLP, *QKV, "self_attn_out_proj"))
print("file with q, k, v and the MLP:          ", without)
print("file with q, k, v, out_proj and the MLP:", whole)
as_seen = without == ["mlp.fc1", "mlp.fc2"] and len(whole) == 6
print("as seen" if as_seen else "this has changed")
sys.exit(0 if as_seen else 1)
PY
"$work/venv/bin/python" "$work/seen.py"
