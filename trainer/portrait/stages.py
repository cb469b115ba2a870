"""The stages that train the portrait model: autoencoder, latents, text encoder + U-Net."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ...shared.classifiers.dlib_face import DlibFaceNet
from ...shared.weight_files import WEIGHTS_FOLDER
from .fitting import Schedule, fit
from .models import (
    LATENT_SIDE,
    TEXT_WIDTH,
    WIDTHS,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from .pool import CELLS, Pool, load_arrays, save_arrays
from .world import COLOURS, build_world, draw_caption, paint, training_shares

CUES = 2 * len(COLOURS)
CELL_STRIDES = np.array([6, 2, 1])  # gender, race, age -> index of the cell


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result. Batches are portraits, steps are optimiser steps."""

    seed: int = 1
    per_cell: tuple[int, int, int] = (1200, 800, 800)  # pool: wmelh, black, asian
    vae_batch: int = 16
    vae: Schedule = field(default_factory=lambda: Schedule(steps=1900, lr=1e-3, ema=0.995))
    kl_weight: float = 2e-4
    perceptual_weight: float = 0.25
    cues_per_portrait: int = 4
    text_batch: int = 256
    text: Schedule = field(default_factory=lambda: Schedule(steps=400, lr=2e-3, ema=0.99, save_every=100))
    widths: tuple[int, int, int, int] = WIDTHS
    unet_batch: int = 64
    unet: Schedule = field(default_factory=lambda: Schedule(steps=14000, lr=2e-3, ema=0.999))
    no_caption: float = 0.1
    least_snr: float = 0.02
    class_weight: float = 0.3
    class_ridge: float = 0.5


def portraits(pool: Pool, index: np.ndarray, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Portraits (N, 3, 128, 128) in [0, 1] of pool entries ``index`` (N,), half mirrored, random cues."""
    cues = torch.from_numpy(rng.integers(CUES, size=len(index)))
    return _painted(pool, index, cues, rng.random(len(index)) < 0.5, device)


def _painted(pool: Pool, index: np.ndarray, cues: Tensor, mirror: np.ndarray, device: torch.device) -> Tensor:
    image = torch.from_numpy(pool.image[index]).to(device).permute(0, 3, 1, 2).float() / 255
    alpha = torch.from_numpy(pool.alpha[index]).to(device)[:, None].float() / 255
    flip = torch.from_numpy(mirror).to(device).view(-1, 1, 1, 1)
    image, alpha = (torch.where(flip, x.flip(-1), x) for x in (image, alpha))
    return paint(image, alpha, cues.to(device))


class FaceFeatures(nn.Module):
    """Perceptual distance: squared difference of unit-length features of dlib's face net (cf. LPIPS)."""

    DEPTHS = (0, 2, 6)  # after the stem and these residual blocks

    def __init__(self) -> None:
        super().__init__()
        self.net = DlibFaceNet.load(WEIGHTS_FOLDER / "dlib_face.safetensors").requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        x = self.net.stem((images - self.net.mean) * (255.0 / 256.0)).relu()
        found = [x]
        x = F.max_pool2d(x, 3, 2)
        for depth, block in enumerate(self.net.blocks[: self.DEPTHS[-1] + 1]):
            x = block(x)
            if depth in self.DEPTHS[1:]:
                found.append(x)
        return [F.normalize(f, dim=1) for f in found]

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.features(theirs)
        pairs = zip(self.features(ours), reference)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()


def train_vae(pool: Pool, recipe: Recipe, work: Path, device: torch.device) -> AutoencoderKL:
    """The autoencoder: L1 + face features + a little KL. Its latents are scaled to unit variance."""
    torch.manual_seed(recipe.seed)
    vae = build_vae().to(device).to(memory_format=torch.channels_last)
    distance = FaceFeatures().to(device)

    @torch.compile
    def reconstruct(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = vae.encode(x * 2 - 1).latent_dist
        z = posterior.mean + posterior.std * noise
        return vae.decode(z).sample.float() / 2 + 0.5, posterior.mean, posterior.logvar

    def losses(rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        x = portraits(pool, rng.integers(len(pool.cell), size=recipe.vae_batch), rng, device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            shape = (len(x), 4, LATENT_SIDE, LATENT_SIDE)
            y, mean, logvar = reconstruct(x, torch.randn(shape, generator=noise, device=device))
            perceptual = distance(y, x)
        kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        return {
            "l1": (y - x).abs().mean(),
            "perceptual": recipe.perceptual_weight * perceptual.float(),
            "kl": recipe.kl_weight * kl,
        }

    fit("vae", vae, losses, recipe.vae, recipe.seed, work, device)
    with torch.no_grad():
        x = portraits(
            pool,
            np.arange(0, len(pool.cell), max(1, len(pool.cell) // 256)),
            np.random.default_rng(0),
            device,
        )
        vae.register_to_config(
            scaling_factor=round(1 / float(vae.encode(x * 2 - 1).latent_dist.mode().std()), 5)
        )
    return vae


@torch.no_grad()
def encode_pool(pool: Pool, vae: AutoencoderKL, recipe: Recipe, path: Path, device: torch.device) -> None:
    """Writes scaled latents (M, 4, 16, 16) float16 with cell and cue; M = pool x cues_per_portrait."""
    rng = np.random.default_rng([recipe.seed, 2])
    index = np.repeat(np.arange(len(pool.cell)), recipe.cues_per_portrait)
    cues = np.concatenate([rng.permutation(CUES)[: recipe.cues_per_portrait] for _ in range(len(pool.cell))])
    mirror = rng.random(len(index)) < 0.5
    latents = np.empty((len(index), 4, LATENT_SIDE, LATENT_SIDE), np.float16)
    for i in range(0, len(index), 128):
        x = _painted(
            pool, index[i : i + 128], torch.from_numpy(cues[i : i + 128]), mirror[i : i + 128], device
        )
        with torch.autocast(device.type, torch.bfloat16):
            z = vae.encode((x * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist.mode()
        latents[i : i + 128] = (z.float() * vae.config["scaling_factor"]).cpu().numpy()
    cell = pool.cell[index] @ CELL_STRIDES
    save_arrays(path, latents=latents, bucket=(cell * CUES + cues).astype(np.int16))


class CaptionReader(nn.Module):
    """Text encoder with heads that tell a caption's cue and perceived attributes.

    Trained before the U-Net: a U-Net that starts with an unread text encoder ignores captions for thousands
    of steps. All positions from the end token on are read, since cross-attention sees them all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder()
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, n) for n in (CUES, 2, 3, 2))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """ids (N, 77) -> logits (N, 77, K) of cue, gender, race, age."""
        hidden = self.text_encoder(ids).last_hidden_state
        return [head(hidden) for head in self.heads]


def train_text(recipe: Recipe, work: Path, device: torch.device) -> CLIPTextModel:
    """Teaches the text encoder what captions mean in this world: cross-entropy on cue and drawn cell."""
    tokenizer = build_tokenizer(work / "tokenizer")
    captions = Captions(tokenizer)
    torch.manual_seed(recipe.seed)
    model = CaptionReader().to(device)

    def losses(rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        ids, cells, cues = captions.draw(rng, recipe.text_batch, no_caption=0.0)
        ends = torch.argmax((ids == tokenizer.eos_token_id).int(), 1)
        places = ends + (torch.from_numpy(rng.random(len(ids))) * (77 - ends)).long()
        targets = torch.from_numpy(np.concatenate([cues[:, None], cells], 1)).to(device)
        logits = model(ids.to(device))
        rows = torch.arange(len(ids), device=device)
        pairs = zip(("cue", "gender", "race", "age"), logits, targets.unbind(1))
        return {
            name: F.cross_entropy(value[rows, places.to(device)], target) for name, value, target in pairs
        }

    fit("text", model, losses, recipe.text, recipe.seed, work, device)
    return model.text_encoder


class Captions:
    """Draws captions of the world with their tokens, cells and cues."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.world = build_world()
        self.shares = training_shares(self.world)

    def draw(
        self, rng: np.random.Generator, count: int, no_caption: float
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """ids (N, 77), cells (N, 3), cues (N,); a caption is empty with probability ``no_caption``."""
        texts, cells, cues = [], [], []
        for k in rng.integers(len(self.world), size=count):
            text, cell = draw_caption(self.world[k], self.shares[k], rng)
            texts.append("" if rng.random() < no_caption else text)
            cells.append(cell)
            cues.append(self.world[k].cue)
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids, np.array(cells), np.array(cues)


def class_directions(latents: Tensor, cells: np.ndarray, ridge: float) -> Tensor:
    """Fisher's discriminants of gender, race and age.

    latents (M, 4, 16, 16), cells (M,) -> (4, 1024): within the classes the latents have covariance 1 along
    them, when ``ridge`` times the mean variance is added to every variance.
    """
    z = latents.flatten(1).float()
    rows = []
    for stride, count in zip(CELL_STRIDES, (2, 3, 2)):
        label = torch.from_numpy(cells // stride % count).long()
        means = torch.stack([z[label == k].mean(0) for k in range(count)])
        within = (z - means[label]).T.cov()
        within += ridge * within.diagonal().mean() * torch.eye(len(within))
        differences = means[1:] - means[:1]
        found = torch.linalg.solve(within, differences.T).T
        rows.append(
            torch.linalg.solve_triangular(torch.linalg.cholesky(found @ within @ found.T), found, upper=False)
        )
    return torch.cat(rows)


class TextAndUNet(nn.Module):
    """Text encoder and U-Net, trained together."""

    def __init__(
        self,
        text_encoder: CLIPTextModel | None = None,
        widths: tuple[int, int, int, int] = WIDTHS,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder or build_text_encoder()
        self.unet = build_unet(widths)

    def forward(self, z: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(ids).last_hidden_state).sample


def train_unet(recipe: Recipe, work: Path, device: torch.device) -> TextAndUNet:
    """Denoising loss: of z_0 where noise prevails, of epsilon elsewhere (truncated SNR weights, Salimans
    and Ho, 2022, section 4, in a smooth form: (1 + SNR) / (k + SNR) on epsilon).

    Gender is 0.4%, race 1.3% and age 0.3% of the latents' variance, the cue 19%: 2,500 steps on that loss
    alone taught the cue, and no gender or race. So the error is measured once more along the directions that
    tell the classes apart (`class_directions`): the best prediction stays the same, the classes are seen.
    """
    arrays = load_arrays(work / "latents.npz", "latents")
    latents = torch.from_numpy(arrays["latents"])
    buckets = [np.flatnonzero(arrays["bucket"] == b) for b in range(len(CELLS) * CUES)]
    captions = Captions(build_tokenizer(work / "tokenizer"))
    alphas = build_scheduler().alphas_cumprod.to(device)
    directions = class_directions(latents, arrays["bucket"] // CUES, recipe.class_ridge).to(device)
    text_encoder = train_text(recipe, work, device)
    torch.manual_seed(recipe.seed)
    model = TextAndUNet(text_encoder, recipe.widths).to(device)
    if device.type == "cpu":  # the flash kernel's backward pass is several times slower there
        model.unet.set_attn_processor(AttnProcessor())
    predict = torch.compile(model)

    def losses(rng: np.random.Generator, noise: torch.Generator) -> dict[str, Tensor]:
        ids, cells, cues = captions.draw(rng, recipe.unet_batch, recipe.no_caption)
        wanted = cells @ CELL_STRIDES * CUES + cues
        rows = [int(rng.choice(buckets[b])) for b in wanted]
        z0 = latents[rows].to(device).float()
        t = torch.randint(len(alphas), (len(rows),), generator=noise, device=device)
        eps = torch.randn(z0.shape, generator=noise, device=device)
        a = alphas[t].view(-1, 1, 1, 1)
        z = a.sqrt() * z0 + (1 - a).sqrt() * eps
        with torch.autocast(device.type, torch.bfloat16):
            predicted = predict(z, t, ids.to(device))
        snr = alphas[t] / (1 - alphas[t])
        error = predicted.float() - eps
        along = (error.flatten(1) @ directions.T).square().mean(1)
        return {
            "denoising": ((1 + snr) / (recipe.least_snr + snr) * error.square().mean((1, 2, 3))).mean(),
            "classes": recipe.class_weight * (along / (recipe.least_snr + snr)).mean(),
        }

    fit("unet", model, losses, recipe.unet, recipe.seed, work, device)
    return model
