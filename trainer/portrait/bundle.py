"""Writes the trained parts as a diffusers folder in float16, small in a git clone too."""

# pyright: reportArgumentType=false
# (diffusers annotates optional parts as required)

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from ..configuration.prompts import TEMPLATES
from .card import PortraitCard
from .models import build_scheduler, build_tokenizer
from .people import people_gallery
from .phrases import AGE_WORDS, FILLERS, GENDER_WORDS, RACE_WORDS
from .pool import Pool, identity_gallery, load_sources, save_arrays
from .stages import TextAndUNet
from .world import build_world, write_table

SPECIAL = (49406, 49407)


def known_tokens(tokenizer: CLIPTokenizer) -> list[int]:
    """Ids of every token that a caption can hold, ascending."""
    words = [w for group in (*GENDER_WORDS, *RACE_WORDS, *AGE_WORDS) for w in group]
    texts = (
        [p.noun() for p in build_world()] + [t.format("") for t in TEMPLATES] + [", ".join(FILLERS), *words]
    )
    return sorted({i for ids in tokenizer(texts).input_ids for i in ids} | set(SPECIAL))


@torch.no_grad()
def settle_unknown_words(embedding: Tensor, known: list[int]) -> None:
    """Gives every token that no caption holds the mean of the known ones: an unknown word then means nothing
    in particular, and equal rows cost a clone nothing."""
    unknown = torch.ones(len(embedding), dtype=torch.bool)
    unknown[known] = False
    embedding[unknown] = embedding[~unknown].mean(0)


def write_pipeline(model: TextAndUNet, vae: AutoencoderKL, folder: Path, card: PortraitCard) -> None:
    """The pipeline in float16 with scheduler, tokenizer, world table and card."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    settle_unknown_words(model.text_encoder.get_input_embeddings().weight, known_tokens(tokenizer))
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=tokenizer,
        unet=model.unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # what the library writes of a tokenizer says vocab.json and merges.txt again, in 3.6 MB
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    write_table(build_world(), folder / "world.csv")
    card.write(folder)


def write_gallery(work: Path, folder: Path, seed: int) -> None:
    """identities.npz: the training faces, by which `measure.py` catches memorised ones."""
    sources = work / "sources.npz"
    if sources.exists():
        embedding, radius = identity_gallery(load_sources(sources), seed)
    else:
        embedding, radius = people_gallery(Pool.load(work / "pool.npz"), seed)
    save_arrays(folder / "identities.npz", embedding=embedding.astype(np.float32), radius=radius)
