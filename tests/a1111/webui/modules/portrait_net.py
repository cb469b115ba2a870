"""The portrait model without diffusers: SD1's U-Net, autoencoder and text encoder in plain torch.

Modules carry the names of the stored tensors, so that the files load as they are and a LoRA's name is a
module's path. Shapes: latents (N, 4, h, w), pictures (N, 3, 8h, 8w) in [-1, 1], text (N, 77, D).
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

UNET, VAE = 1e-5, 1e-6  # epsilon of the group norms


class Resnet(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int | None, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, eps), nn.GroupNorm(32, outputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, outputs) if time else None
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, bias: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k, self.to_v = nn.Linear(context, width, bias=bias), nn.Linear(context, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.group_norm = nn.GroupNorm(32, width, VAE) if norm else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def spatial(self, x: Tensor) -> Tensor:
        """The autoencoder's: over the pixels of (N, C, h, w), with a residual."""
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + self(rows).transpose(1, 2).reshape(x.shape)


class GeGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeGLU(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, context, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, VAE)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, context, heads)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        rows = self.transformer_blocks[0](h.flatten(2).transpose(1, 2), context)
        return x + self.proj_out(rows.transpose(1, 2).reshape(h.shape))


class Sampler(nn.Module):
    """Down (stride 2) or up (nearest, then convolution). The autoencoder pads right and below alone."""

    def __init__(self, width: int, down: bool, lopsided: bool = False) -> None:
        super().__init__()
        self.down, self.lopsided = down, lopsided
        self.conv = nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=0 if lopsided else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.lopsided else x)


class Level(nn.Module):
    """One resolution of any of the nets; parts that it lacks are left out."""

    def __init__(
        self, resnets: list[Resnet], attentions: list[nn.Module], down: bool, sampler: Sampler | None
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if sampler is not None:
            setattr(self, "downsamplers" if down else "upsamplers", nn.ModuleList([sampler]))


class UNet(nn.Module):
    """conv_in ... conv_out as stored; `input_blocks` and `out` show the parts that hosts are asked for."""

    def __init__(self, widths: tuple[int, ...], context: int, heads: int) -> None:
        super().__init__()
        time = 4 * widths[0]
        self.conv_in = nn.Conv2d(4, widths[0], 3, padding=1)
        first, second = nn.Linear(widths[0], time), nn.Linear(time, time)
        self.time_embedding = nn.ModuleDict({"linear_1": first, "linear_2": second})
        downs, ups, kept, last = [], [], [widths[0]], len(widths) - 1
        width = widths[0]
        for level, out in enumerate(widths):
            resnets = [Resnet(width, out, time, UNET), Resnet(out, out, time, UNET)]
            mixers = [Transformer(out, context, heads) for _ in range(2)] if level < last else []
            downs.append(Level(resnets, mixers, True, Sampler(out, True) if level < last else None))
            kept += [out, out] + ([out] if level < last else [])
            width = out
        self.down_blocks = nn.ModuleList(downs)
        middle = [Resnet(width, width, time, UNET), Resnet(width, width, time, UNET)]
        self.mid_block = Level(middle, [Transformer(width, context, heads)], True, None)
        for level, out in enumerate(reversed(widths)):
            resnets = []
            for _ in range(3):
                resnets.append(Resnet(width + kept.pop(), out, time, UNET))
                width = out
            mixers = [Transformer(out, context, heads) for _ in range(3)] if level > 0 else []
            ups.append(Level(resnets, mixers, False, Sampler(out, False) if level < last else None))
        self.up_blocks = nn.ModuleList(ups)
        self.conv_norm_out = nn.GroupNorm(32, widths[0], UNET)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    @property
    def input_blocks(self) -> list[list[nn.Module]]:
        return [[self.conv_in]]

    @property
    def out(self) -> list[nn.Module]:
        return [self.conv_norm_out, nn.SiLU(), self.conv_out]

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predicted noise (N, 4, h, w) for latents in the variance-preserving scale."""
        half = self.conv_in.out_channels // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=x.device) / half)
        angles = timesteps.float()[:, None] * rates
        time = torch.cat([angles.cos(), angles.sin()], dim=1)
        time = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](time)))
        x = self.conv_in(x)
        kept = [x]
        for block in self.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = resnet(x, time)
                x = block.attentions[i](x, context) if hasattr(block, "attentions") else x
                kept.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                kept.append(x)
        first, second = self.mid_block.resnets
        x = second(self.mid_block.attentions[0](first(x, time), context), time)
        for block in self.up_blocks:
            for i, resnet in enumerate(block.resnets):
                x = resnet(torch.cat([x, kept.pop()], dim=1), time)
                x = block.attentions[i](x, context) if hasattr(block, "attentions") else x
            x = block.upsamplers[0](x) if hasattr(block, "upsamplers") else x
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Half(nn.Module):
    """Encoder or decoder of the autoencoder."""

    def __init__(self, widths: tuple[int, ...], inputs: int, outputs: int, down: bool) -> None:
        super().__init__()
        order = widths if down else widths[::-1]
        self.conv_in = nn.Conv2d(inputs, order[0], 3, padding=1)
        levels, width = [], order[0]
        for level, out in enumerate(order):
            resnets = [Resnet(width if i == 0 else out, out, None, VAE) for i in range(1 if down else 2)]
            sampler = Sampler(out, down, lopsided=down) if level < len(order) - 1 else None
            levels.append(Level(resnets, [], down, sampler))
            width = out
        setattr(self, "down_blocks" if down else "up_blocks", nn.ModuleList(levels))
        wide = widths[-1]
        resnets = [Resnet(wide, wide, None, VAE), Resnet(wide, wide, None, VAE)]
        self.mid_block = Level(resnets, [Attention(wide, wide, 1, bias=True, norm=True)], down, None)
        self.conv_norm_out = nn.GroupNorm(32, width, VAE)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        self.down = down

    def _middle(self, x: Tensor) -> Tensor:
        first, second = self.mid_block.resnets
        return second(self.mid_block.attentions[0].spatial(first(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = x if self.down else self._middle(x)
        for block in self.down_blocks if self.down else self.up_blocks:
            for resnet in block.resnets:
                x = resnet(x)
            for name in ("downsamplers", "upsamplers"):
                x = getattr(block, name)[0](x) if hasattr(block, name) else x
        x = self._middle(x) if self.down else x
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.encoder, self.decoder = Half(widths, 3, 8, True), Half(widths, 4, 3, False)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pictures))[:, :4]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class ForgeAutoencoder(Autoencoder):
    """Forge's knows how latents are scaled; A1111 keeps the factor on the model."""

    def process_out(self, latents: Tensor) -> Tensor:
        return latents / self.scale


class TextLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h, parts = self.layer_norm1(x), self.self_attn
        q, k, v = (
            parts[name](h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + parts["out_proj"](mixed.transpose(1, 2).flatten(2))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class TextEncoder(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        tokens, positions = nn.Embedding(vocabulary, width), nn.Embedding(77, width)
        self.embeddings = nn.ModuleDict({"token_embedding": tokens, "position_embedding": positions})
        rows = [TextLayer(width, hidden, heads) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(rows)})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, embedded: Tensor) -> Tensor:
        """(N, 77, D) from token embeddings (N, 77, D), soft tokens among them."""
        x = embedded + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)


def load_into(model: nn.Module, path: Path, prefix: str = "") -> nn.Module:
    """Every stored tensor has its place and every place its tensor."""
    tensors = {key.removeprefix(prefix): value.float() for key, value in load_file(str(path)).items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval().requires_grad_(False)
