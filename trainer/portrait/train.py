"""Trains the portrait model from scratch, stage by stage; every stage resumes.

    python trainer/portrait/train.py all --people PEOPLE [--work DIR] [--out DIR] [--device cuda]
    python trainer/portrait/train.py all --faces FACES ...         as the shipped model was made
    python trainer/portrait/train.py STAGE ...     sources | pool | vae | latents | unet | export

PEOPLE is a folder of trainer/portrait/render.py. FACES holds faces.csv and images/: the synthetic adult
portraits that the shipped model was made of, cut out and mixed. One GPU: minutes; two CPU cores: three hours.
A stage whose result is there is skipped; delete the result to do it again.
"""

# pyright: reportArgumentType=false
# (diffusers annotates ModelMixin.to wrongly)

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.portrait.bundle import write_gallery, write_pipeline
from fair_adapter.trainer.portrait.card import PortraitCard
from fair_adapter.trainer.portrait.models import WIDTHS
from fair_adapter.trainer.portrait.people import read_people
from fair_adapter.trainer.portrait.pool import Pool, build_pool, load_sources, read_sources, save_sources
from fair_adapter.trainer.portrait.stages import Recipe, encode_pool, train_unet, train_vae
from fair_adapter.trainer.portrait.world import build_world
from fair_adapter.trainer.running.exits import exit_code

STAGES = ("sources", "pool", "vae", "latents", "unet", "export")
GUIDANCE_SCALE = 2.75


def run_stage(stage: str, options: argparse.Namespace, recipe: Recipe) -> None:
    """One stage; its result is a file or folder of options.work (export: options.out)."""
    work, device = options.work, torch.device(options.device)
    result = {
        "sources": "sources.npz",
        "pool": "pool.npz",
        "vae": "vae/config.json",
        "latents": "latents.npz",
    }
    if stage in result and (work / result[stage]).exists():
        print(f"{stage}: {work / result[stage]} is there")
        return
    print(f"{stage} ...", flush=True)
    if stage == "sources":
        save_sources(work / "sources.npz", read_sources(options.faces))
    elif stage == "pool" and options.people is not None:
        read_people(options.people).save(work / "pool.npz")
    elif stage == "pool":
        build_pool(load_sources(work / "sources.npz"), recipe.per_cell, recipe.seed).save(work / "pool.npz")
    elif stage == "vae":
        train_vae(Pool.load(work / "pool.npz"), recipe, work, device).save_pretrained(work / "vae")
    elif stage == "latents":
        encode_pool(Pool.load(work / "pool.npz"), _vae(work, device), recipe, work / "latents.npz", device)
    elif stage == "unet":
        train_unet(recipe, work, device)
    else:
        _export(options, recipe, device)


def _vae(work: Path, device: torch.device) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_pretrained(work / "vae", local_files_only=True).to(device)
    except (OSError, ValueError) as error:
        raise FairAdapterError(
            f"{work / 'vae'}: expected the trained autoencoder, found none; run "
            "`python trainer/portrait/train.py vae` first"
        ) from error


def _export(options: argparse.Namespace, recipe: Recipe, device: torch.device) -> None:
    steps = recipe.unet.steps
    card = PortraitCard(
        GUIDANCE_SCALE, 20, len(build_world()), {"steps": steps, "portraits_seen": steps * recipe.unet_batch}
    )
    write_pipeline(train_unet(recipe, options.work, device), _vae(options.work, device), options.out, card)
    write_gallery(options.work, options.out, recipe.seed)


def _needs_sources(options: argparse.Namespace) -> bool:
    """Whether the portraits are cut out of pictures. Raises FairAdapterError where nothing says of which."""
    there = any((options.work / name).exists() for name in ("sources.npz", "pool.npz"))
    if options.people is None and options.faces is None and not there:
        raise FairAdapterError(
            "stage sources: expected --people FOLDER of trainer/portrait/render.py, or --faces FOLDER with "
            "faces.csv and images/, found neither"
        )
    return options.people is None and (options.faces is not None or (options.work / "sources.npz").exists())


def _train(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(widths=options.widths)
    recipe = replace(recipe, unet=replace(recipe.unet, steps=options.unet_steps))
    for stage in STAGES if options.stage == "all" else (options.stage,):
        if stage != "sources" or _needs_sources(options):
            run_stage(stage, options, recipe)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the portrait model.")
    parser.add_argument("stage", choices=(*STAGES, "all"))
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--people", type=Path, help="folder of rendered people (stage pool)")
    source.add_argument("--faces", type=Path, help="folder with faces.csv and images/ (stage sources)")
    parser.add_argument("--work", type=Path, default=Path("runs/portrait"), help="checkpoints and results")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/portrait/model"), help="the exported diffusers folder"
    )
    parser.add_argument(
        "--unet-steps", type=int, default=Recipe().unet.steps, help="optimiser steps of the U-Net"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs=4,
        default=WIDTHS,
        help="of the U-Net's levels (the shipped model's)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _train(options))


if __name__ == "__main__":
    sys.exit(main())
