"""The loaded checkpoint, as extensions see it: `shared.sd_model`."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from modules import lowvram, shared
from modules.clip_tokens import clip_tokenizer
from modules.portrait_net import Autoencoder, ForgeAutoencoder, TextEncoder, UNet, load_into
from torch import Tensor

START, END, POSITIONS = 49406, 49407, 77


def patches() -> dict[str, dict]:
    """Where Forge keeps what its networks change: by file; Forge Neo by layer, and the other stays empty."""
    return {"lora_patches": {}, **({"patches": {}} if shared.NEO else {})}


class PortraitModel:
    """is_sd1 and the other flags, `model.diffusion_model` (A1111) or `forge_objects` (Forge)."""

    is_sd1, is_sdxl = True, False

    def __init__(self, folder: Path, forge: bool) -> None:
        self.forge = forge
        if not shared.NEO:
            self.is_sd2 = False
        settings = {part: json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae")}
        text = json.loads((folder / "text_encoder" / "config.json").read_text())
        unet = UNet(
            tuple(settings["unet"]["block_out_channels"]),
            settings["unet"]["cross_attention_dim"],
            settings["unet"]["attention_head_dim"],
        )
        self.unet = load_into(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
        kind = ForgeAutoencoder if forge else Autoencoder
        vae = kind(tuple(settings["vae"]["block_out_channels"]), settings["vae"]["scaling_factor"])
        vae = load_into(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
        encoder = TextEncoder(
            text["vocab_size"], text["hidden_size"], text["intermediate_size"], text["num_attention_heads"],
            text["num_hidden_layers"],
        )  # fmt: skip
        self.encoder = load_into(encoder, folder / "text_encoder" / "model.safetensors", "text_model.")
        self.tokenizer = clip_tokenizer(folder / "tokenizer")
        self.sd_checkpoint_info = SimpleNamespace(
            name_for_extra="portrait", title="portrait.safetensors [0000]", filename="portrait.safetensors"
        )
        if forge:
            self.forge_objects = SimpleNamespace(
                unet=SimpleNamespace(model=SimpleNamespace(diffusion_model=self.unet), **patches()),
                clip=SimpleNamespace(cond_stage_model=self.encoder, patcher=SimpleNamespace(**patches())),
                vae=lowvram.ForgeVAE(vae),
            )
            unet.register_forward_pre_hook(lambda module, inputs: lowvram.bring("unet"))
        else:
            self.model = SimpleNamespace(diffusion_model=self.unet)
            self.cond_stage_model = self.encoder
            self.first_stage_model, self.scale_factor = vae, vae.scale
            self.lowvram = False
            if shared.cmd_opts.medvram:
                lowvram.setup(self)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.cumulative = torch.cumprod(1 - betas, dim=0)

    def decode_first_stage(self, x: Tensor) -> Tensor:
        """Latents of the sampler -> pictures in [-1, 1]; moves weights where the host is short of memory."""
        if not self.forge:
            return self.first_stage_model.decode(1 / self.scale_factor * x)
        vae = self.forge_objects.vae
        return vae.decode(vae.first_stage_model.process_out(x)).movedim(-1, 1) * 2 - 1

    def encode_first_stage(self, pixels: Tensor) -> Tensor:
        vae = self.forge_objects.vae.first_stage_model if self.forge else self.first_stage_model
        return vae.encode(pixels) * vae.scale

    @property
    def width(self) -> int:
        return self.encoder.embeddings["token_embedding"].weight.shape[1]

    def tokenise(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def encode(self, prompt: str, embeddings: "EmbeddingTable") -> Tensor:
        """(1, 77, D); names of embeddings stand for their vectors."""
        table = self.encoder.embeddings["token_embedding"].weight
        rows = embeddings.embed(self.tokenise(prompt), table)[: POSITIONS - 2]
        padding = [table[END]] * (POSITIONS - 1 - len(rows))
        return self.encoder(torch.stack([table[START], *rows, *padding])[None])

    # ---- sampling

    def schedule(self, steps: int) -> tuple[Tensor, Tensor]:
        """Timesteps (T,) and sigmas (T + 1,) with a final zero, evenly spaced in time."""
        timesteps = torch.linspace(0, 999, steps + 1, dtype=torch.float64).round().flip(0)[:-1]
        kept = self.cumulative[timesteps.long()]
        return timesteps, torch.cat([((1 - kept) / kept).sqrt(), kept.new_zeros(1)])

    def noise_prediction(self, x: Tensor, sigma: float, timestep: float, text: Tensor) -> Tensor:
        times = torch.full((len(x),), float(timestep))
        return self.unet(x / math.sqrt(1 + sigma**2), times, text)


class EmbeddingTable:
    """Embeddings by name; `word_embeddings` is what hosts call the table."""

    def __init__(self, model: "PortraitModel") -> None:
        self.model = model
        self.word_embeddings: dict[str, Tensor] = {}
        self.ids: dict[str, list[int]] = {}
        self.skipped: dict[str, Tensor] = {}

    def register(self, name: str, vectors: Tensor) -> None:
        if vectors.shape[-1] != self.model.width:
            self.skipped[name] = vectors
            return
        self.word_embeddings[name] = vectors.float()
        self.ids[name] = self.model.tokenise(name)

    def embed(self, tokens: list[int], table: Tensor) -> list[Tensor]:
        rows: list[Tensor] = []
        names = sorted(self.ids, key=lambda name: -len(self.ids[name]))
        position = 0
        while position < len(tokens):
            for name in names:
                ids = self.ids[name]
                if tokens[position : position + len(ids)] == ids:
                    rows += list(self.word_embeddings[name])
                    position += len(ids)
                    break
            else:
                rows.append(table[tokens[position]])
                position += 1
        return rows
