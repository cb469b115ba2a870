"""Names of tensors in single-file checkpoints, from diffusers' and transformers' names of the same tensors.

The layouts are those of CompVis' ldm (U-Net, VAE), OpenAI's CLIP in transformers, OpenCLIP, Stability AI's
MMDiT and Z-Image; diffusers' converters (loaders/single_file_utils.py) go the other way. Several tensors of
a model may lie in one of a file: query, key and value of an attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rules = tuple[tuple[str, str], ...]
Namer = Callable[[str], str]

RESNET: Rules = (
    (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."), (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."), (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)  # fmt: skip
UNET: Rules = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."), (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."), (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."), (r"^conv_norm_out\.", "out.0."), (r"^conv_out\.", "out.2."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."), (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
)  # fmt: skip
VAE: Rules = (
    (r"mid_block\.attentions\.0\.", "mid.attn_1."), (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."), (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"), (r"\.group_norm\.", ".norm."), (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."), (r"encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
)  # fmt: skip
OPEN_CLIP: Rules = (
    (r"^text_model\.", ""), (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^encoder\.layers\.", "transformer.resblocks."), (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."), (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"), (r"\.self_attn\.", ".attn."),
    (r"^final_layer_norm\.", "ln_final."), (r"^text_projection\.weight", "text_projection"),
)  # fmt: skip
MMDIT: Rules = (
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"^transformer_blocks\.", "joint_blocks."), (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
    (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
    (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."), (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
    (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
    (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
    (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
    (r"\.(attn2?)\.to_[qkv]\.", r".x_block.\1.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".context_block.attn.qkv."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."), (r"^proj_out\.", "final_layer.linear."),
)  # fmt: skip

Z_IMAGE: Rules = (
    (r"^all_x_embedder\.2-1\.", "x_embedder."), (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"\.attention\.to_out\.0\.", ".attention.out."), (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
)  # fmt: skip


def renamed(rules: Rules, key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def unet_key(key: str, layers: int = 2, attended: Sequence[bool] = (False, True, True, True)) -> str:
    """A U-Net's tensor. layers: of a block.  attended: whether the blocks on the way up have attention."""
    key = renamed(UNET, key)
    where = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.", key)
    if where:
        way, level, part, index = where[1], int(where[2]), where[3], int(where[4])
        first, rest = (layers + 1) * level, key[where.end() :]
        if part == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv.', 'op.')}"
        if part == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if attended[level] else 1}.{rest}"
        block = first + index + (1 if way == "down" else 0)
        side = "input" if way == "down" else "output"
        key = f"{side}_blocks.{block}.{0 if part == 'resnets' else 1}.{rest}"
    return key if ".transformer_blocks." in key else renamed(RESNET, key)


def vae_key(key: str, levels: int = 4) -> str:
    """An autoencoder's tensor; the decoder's levels count backwards."""
    key = renamed(VAE, key)

    def up(where: re.Match[str]) -> str:
        part = "block." if where[2].startswith("resnets") else "upsample."
        return f"decoder.up.{levels - 1 - int(where[1])}.{part}"

    return re.sub(r"decoder\.up_blocks\.(\d)\.(resnets\.|upsamplers\.0\.)", up, key)


def clip_key(key: str) -> str:
    """A tensor of transformers' CLIP, in some versions of which the first word is left out."""
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def open_clip_key(key: str) -> str:
    return renamed(OPEN_CLIP, key)


def mmdit_key(key: str) -> str:
    return renamed(MMDIT, key)


def z_image_key(key: str) -> str:
    return renamed(Z_IMAGE, key)


def same_key(key: str) -> str:
    return key


def unet_namer(config: Mapping[str, Any]) -> Namer:
    """`unet_key` for a U-Net of this configuration."""
    attended = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]
    return lambda key: unet_key(key, int(config["layers_per_block"]), attended)


def vae_namer(config: Mapping[str, Any]) -> Namer:
    return lambda key: vae_key(key, len(config["block_out_channels"]))
