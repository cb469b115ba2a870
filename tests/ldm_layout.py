"""Names and shapes of the tensors that CompVis' ldm makes by a yaml, worked out without diffusers: what
AUTOMATIC1111 builds before it loads a checkpoint into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Shapes = dict[str, tuple[int, ...]]
GROUPS = 32


def _linear(name: str, wide: int, narrow: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (wide, narrow)} | ({f"{name}.bias": (wide,)} if bias else {})


def _convolution(name: str, out: int, into: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, width: int, grouped: bool = True) -> Shapes:
    assert not grouped or width % GROUPS == 0, f"{name}: {width} channels in {GROUPS} groups"
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _width(channels: Any, multiple: Any) -> int:
    """As ldm has it: the product goes into a layer as it is, where a float is an error."""
    width = multiple * channels
    assert type(width) is int, f"{multiple} x {channels} is no whole number of channels"
    return width


def _res_block(name: str, into: int, out: int, emb: int) -> Shapes:
    return (
        _norm(f"{name}.in_layers.0", into)
        | _convolution(f"{name}.in_layers.2", out, into)
        | _linear(f"{name}.emb_layers.1", out, emb)
        | _norm(f"{name}.out_layers.0", out)
        | _convolution(f"{name}.out_layers.3", out, out)
        | (_convolution(f"{name}.skip_connection", out, into, 1) if into != out else {})
    )


def _transformer(name: str, width: int, depth: int, context: int, heads: int) -> Shapes:
    inner = width // heads * heads
    shapes = _norm(f"{name}.norm", width) | _convolution(f"{name}.proj_in", inner, width, 1)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", inner), ("attn2", context)):
            shapes |= _linear(f"{block}.{attention}.to_q", inner, inner, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_k", inner, source, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_v", inner, source, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_out.0", inner, inner)
        shapes |= _linear(f"{block}.ff.net.0.proj", 8 * inner, inner)  # twice 4: a gate goes with each
        shapes |= _linear(f"{block}.ff.net.2", inner, 4 * inner)
        for n in (1, 2, 3):
            shapes |= _norm(f"{block}.norm{n}", inner, grouped=False)
    return shapes | _convolution(f"{name}.proj_out", width, inner, 1)


def unet_shapes(params: dict[str, Any]) -> Shapes:
    """The tensors of a UNetModel with a spatial transformer, of these ``params`` of a yaml."""
    channels, multiples, blocks = params["model_channels"], params["channel_mult"], params["num_res_blocks"]
    attended, emb = params["attention_resolutions"], 4 * params["model_channels"]

    def attention(name: str, width: int) -> Shapes:
        depth, context = params["transformer_depth"], params["context_dim"]
        return _transformer(name, width, depth, context, params["num_heads"])

    shapes = _linear("time_embed.0", emb, channels) | _linear("time_embed.2", emb, emb)
    shapes |= _convolution("input_blocks.0.0", channels, params["in_channels"])
    skips, width, factor, number = [channels], channels, 1, 1
    for level, multiple in enumerate(multiples):
        for _ in range(blocks):
            into, width = width, _width(channels, multiple)
            shapes |= _res_block(f"input_blocks.{number}.0", into, width, emb)
            shapes |= attention(f"input_blocks.{number}.1", width) if factor in attended else {}
            skips, number = [*skips, width], number + 1
        if level < len(multiples) - 1:
            shapes |= _convolution(f"input_blocks.{number}.0.op", width, width)
            skips, number, factor = [*skips, width], number + 1, 2 * factor
    shapes |= _res_block("middle_block.0", width, width, emb) | attention("middle_block.1", width)
    shapes |= _res_block("middle_block.2", width, width, emb)
    number = 0
    for level, multiple in reversed([*enumerate(multiples)]):
        for i in range(blocks + 1):
            into, width = width + skips.pop(), _width(channels, multiple)
            name, part = f"output_blocks.{number}", 1
            shapes |= _res_block(f"{name}.0", into, width, emb)
            if factor in attended:
                shapes, part = shapes | attention(f"{name}.1", width), 2
            if level and i == blocks:
                shapes, factor = shapes | _convolution(f"{name}.{part}.conv", width, width), factor // 2
            number += 1
    return shapes | _norm("out.0", width) | _convolution("out.2", params["out_channels"], width)


def _vae_block(name: str, into: int, out: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", into) | _convolution(f"{name}.conv1", out, into)
    shapes |= _norm(f"{name}.norm2", out) | _convolution(f"{name}.conv2", out, out)
    return shapes | (_convolution(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def _vae_middle(name: str, width: int) -> Shapes:
    shapes = _vae_block(f"{name}.block_1", width, width) | _vae_block(f"{name}.block_2", width, width)
    shapes |= _norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _convolution(f"{name}.attn_1.{part}", width, width, 1)
    return shapes


def vae_shapes(params: dict[str, Any]) -> Shapes:
    """The tensors of an AutoencoderKL, of these ``params`` of a yaml."""
    config, embed = params["ddconfig"], params["embed_dim"]
    assert config["attn_resolutions"] == []
    blocks, latent = config["num_res_blocks"], config["z_channels"]
    widths = [_width(config["ch"], multiple) for multiple in config["ch_mult"]]
    shapes = _convolution("encoder.conv_in", config["ch"], config["in_channels"])
    for level, into in enumerate([config["ch"], *widths[:-1]]):
        for name, first in _stack(f"encoder.down.{level}", blocks, into, widths[level]):
            shapes |= _vae_block(name, first, widths[level])
        if level < len(widths) - 1:
            shapes |= _convolution(f"encoder.down.{level}.downsample.conv", widths[level], widths[level])
    for half, out, end in (("encoder", 2 * latent, widths[-1]), ("decoder", config["out_ch"], widths[0])):
        shapes |= _vae_middle(f"{half}.mid", widths[-1])
        shapes |= _norm(f"{half}.norm_out", end) | _convolution(f"{half}.conv_out", out, end)
    shapes |= _convolution("decoder.conv_in", widths[-1], latent)
    for level, into in enumerate([*widths[1:], widths[-1]]):
        for name, first in _stack(f"decoder.up.{level}", blocks + 1, into, widths[level]):
            shapes |= _vae_block(name, first, widths[level])
        if level:
            shapes |= _convolution(f"decoder.up.{level}.upsample.conv", widths[level], widths[level])
    shapes |= _convolution("quant_conv", 2 * embed, 2 * latent, 1)
    return shapes | _convolution("post_quant_conv", latent, embed, 1)


def _stack(name: str, blocks: int, into: int, out: int) -> Iterator[tuple[str, int]]:
    """The blocks of a level, each with the width that comes into it."""
    return ((f"{name}.block.{i}", out if i else into) for i in range(blocks))
