"""What is wrong with the naive gradient: Figure 1 of Shen et al. (ICLR 2024), measured on the portrait model.

    python trainer/gradients.py [--runs 20] [--trainings 3] [--iterations 100] [--output DIR]

The task: pictures of one prompt shall look like the base model's of another, from the same noise (the mean
distance of the image encoders). Three gradients of it are compared:

    naive     R A_t B_t: direct finetuning as it stands, back through the whole sampler
    direct    R A_t: the coupling of the steps (B_t) dropped
    adjusted  R: the direct coefficient set to 1 as well

First the size of each step's share in the gradient of a text-encoder LoRA, mean and 90% interval over
prompts and noises; then the loss of short trainings with each, mean and range. Writes gradients.json and
gradients.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor

from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.direct import one_graph_gradient, step_weights
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.preservation import SemanticEncoder, image_semantics_loss
from fair_adapter.shared.sampling import network_inputs, rollout, select
from fair_adapter.shared.seeds import noise_seed, starting_noise
from fair_adapter.shared.tensor_file import write_bytes
from fair_adapter.trainer.configuration.config import AdapterConfig, PromptSource
from fair_adapter.trainer.configuration.prompts import read_prompts
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.portrait import PORTRAIT
from fair_adapter.trainer.families.stable_diffusion import StableDiffusion
from fair_adapter.trainer.instruments.encoders import load_encoders
from fair_adapter.trainer.running.figures import subplots, to_png
from fair_adapter.trainer.running.progress import Progress
from fair_adapter.trainer.running.tables import print_table

Gradient = Literal["naive", "direct", "exact"]
TITLES: dict[Gradient, str] = {"naive": "naive", "direct": "direct", "exact": "adjusted"}
SPACE = TargetSpace(TargetDistribution.parse("gender=50/50"))  # the adapter's form asks for one; unused here
BANK, BATCH = 16, 4  # noises of a training, and how many of them an iteration takes
FEW_RUNS = 20  # the outermost twentieth of fewer is not even one: no quantile but the extremes
SPREAD = 0.02  # of the LoRA's first numbers: at up = 0 half of its gradient is zero


@dataclass
class Bench:
    """A model with a LoRA on its text encoder, and what its pictures are compared with."""

    model: StableDiffusion
    encoders: Sequence[SemanticEncoder]
    prompts: list[str]
    scale: float
    steps: int
    rank: int

    def adaptation(self, seed: int) -> Adaptation:
        config = AdapterConfig(soft_tokens=5, text_lora=True, rank=self.rank)
        made = Adaptation.create(self.model, SPACE, config, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(SPREAD * torch.randn(p.shape, generator=generator))
        return made

    def noise(self, what: str, indices: Sequence[int]) -> Tensor:
        return starting_noise([noise_seed(what, i, "gradients") for i in indices], self.model.latent_shape)

    def pair(self, run: int) -> tuple[str, str]:
        """The prompt of a run, and the one whose pictures its own shall resemble."""
        count = len(self.prompts)
        return self.prompts[run % count], self.prompts[(run + count // 2) % count]

    @torch.no_grad()
    def references(self, prompt: str, noise: Tensor) -> list[Tensor]:
        """Features of the base model's pictures of `prompt`."""
        guidance = self.model.guidance([prompt], self.scale)
        return self.features(
            rollout(self.model.denoise, self.model.sampler(self.steps), noise, guidance).final
        )

    def features(self, latents: Tensor) -> list[Tensor]:
        images = self.model.decode(latents).clamp(0, 1)
        return [encoder(images) for encoder in self.encoders]

    def objective(self, references: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda z: image_semantics_loss(self.features(z), references).mean()


def step_sizes(bench: Bench, run: int) -> dict[Gradient, np.ndarray]:
    """Norm of every step's share in the LoRA's gradient, (T,) for each kind, for one prompt and noise."""
    adaptation, sampler = bench.adaptation(run), bench.model.sampler(bench.steps)
    prompt, other = bench.pair(run)
    noise = bench.noise(prompt, [run])
    references = bench.references(other, noise)
    with adaptation:
        parameters = list(adaptation.parameters())

        def gradient(mode: Gradient) -> Tensor:
            guidance = adaptation.guidance([prompt], bench.scale)
            found = one_graph_gradient(
                adaptation.denoise, sampler, noise, guidance, bench.objective(references), mode
            )
            for p in parameters:
                p.grad = None
            return found.cotangents

        with torch.no_grad():
            guidance = adaptation.guidance([prompt], bench.scale)
            latents = rollout(adaptation.denoise, sampler, noise, guidance).latents

        def share(k: int, cotangent: Tensor) -> float:
            """Norm of (d o_k / d theta)^T cotangent with z_k held fixed."""
            guidance = adaptation.guidance([prompt], bench.scale)
            inputs, timesteps = network_inputs(sampler, k, latents[k])
            for conditioning, weight in guidance.branches():
                rows = select(conditioning, torch.zeros(1, dtype=torch.long), 1)
                adaptation.denoise(inputs, timesteps, rows).backward(weight * cotangent, retain_graph=True)
            squares = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
            for p in parameters:
                p.grad = None
            return squares**0.5

        coupled, plain = gradient("naive"), gradient("exact")
        naive = np.array([share(k, coupled[k]) for k in range(sampler.steps)])
        adjusted = np.array([share(k, plain[k]) for k in range(sampler.steps)])
    ratio = (sampler.direct / step_weights(sampler, "exact")).abs().numpy()
    return {"naive": naive, "direct": ratio * adjusted, "exact": adjusted}


def train(
    bench: Bench, run: int, iterations: int, lr: float, tick: Callable[[], None]
) -> dict[Gradient, list[float]]:
    """The loss of every iteration with each gradient, over the loss of the base model's own pictures."""
    sampler = bench.model.sampler(bench.steps)
    prompt, other = bench.pair(run)
    noise = bench.noise(prompt, range(BANK))
    references = bench.references(other, noise)
    start = float(image_semantics_loss(bench.references(prompt, noise), references).mean())
    losses: dict[Gradient, list[float]] = {mode: [] for mode in TITLES}
    for mode, curve in losses.items():
        adaptation, order = bench.adaptation(run), torch.Generator().manual_seed(run)
        optimizer = torch.optim.AdamW(adaptation.parameters(), lr=lr)
        with adaptation:
            for _ in range(iterations):
                rows = torch.randperm(BANK, generator=order)[:BATCH]
                guidance = adaptation.guidance([prompt], bench.scale)
                objective = bench.objective([features[rows] for features in references])
                found = one_graph_gradient(
                    adaptation.denoise, sampler, noise[rows], guidance, objective, mode
                )
                curve.append(float(found.loss) / start)
                optimizer.step()
                optimizer.zero_grad()
                tick()
    return losses


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean over the runs of (runs, K), and where 90% of them lie: the range of all where they are few."""
    few = len(values) < FEW_RUNS
    low, high = np.quantile(values, (0.0, 1.0) if few else (0.05, 0.95), axis=0)
    spread = f"range of {len(values)} runs" if few else f"90% interval of {len(values)} runs"
    return {
        "mean": values.mean(0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "spread": spread,
    }


def plot(report: dict[str, Any]) -> bytes:
    """Both halves of the figure as a PNG."""
    figure, [[left, right]] = subplots(1, 2, 11, 4)
    for axis, part in ((left, "loss"), (right, "steps")):
        for name, curve in report[part].items():
            x = report["timesteps"] if part == "steps" else range(1, len(curve["mean"]) + 1)
            (line,) = axis.plot(x, curve["mean"], label=name)
            axis.fill_between(x, curve["low"], curve["high"], color=line.get_color(), alpha=0.2)
        axis.legend()
    loss, steps = (next(iter(report[part].values()))["spread"] for part in ("loss", "steps"))
    left.set(title=f"training loss, of the base model's ({loss})", xlabel="iteration", ylim=(0, None))
    right.set(title=f"each step's share in the gradient ({steps})", xlabel="timestep", yscale="log")
    right.invert_xaxis()
    return to_png(figure)


def measure(options: argparse.Namespace, command: str) -> dict[str, Any]:
    model = StableDiffusion.load(options.model)
    prompts = [p.text for p in read_prompts(PromptSource("occupations_train"))]
    scale = model.guidance_scale
    bench = Bench(model, load_encoders(("embedded",)), prompts, scale, options.steps, options.rank)
    sizes: dict[Gradient, list[np.ndarray]] = {mode: [] for mode in TITLES}
    with Progress("sizes, runs", options.runs) as progress:
        for run in range(options.runs):
            for mode, values in step_sizes(bench, run).items():
                sizes[mode].append(values)
            progress.advance()
    losses: dict[Gradient, list[list[float]]] = {mode: [] for mode in TITLES}
    with Progress("trainings, iterations", len(TITLES) * options.trainings * options.iterations) as progress:
        for run in range(options.trainings):
            for mode, curve in train(bench, run, options.iterations, options.lr, progress.advance).items():
                losses[mode].append(curve)
    return {
        "command": command,
        "model": Path(options.model).name,
        "settings": {"guidance_scale": scale, "steps": options.steps, "rank": options.rank, "lr": options.lr,
                     "images": BATCH, "runs": options.runs, "trainings": options.trainings},
        "timesteps": [float(t) for t in model.sampler(options.steps).timesteps],
        "steps": {TITLES[mode]: summary(np.array(values)) for mode, values in sizes.items()},
        "loss": {TITLES[mode]: summary(np.array(curves)) for mode, curves in losses.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=PORTRAIT, help="diffusers folder of a portrait model (the shipped one)")
    add("--runs", type=int, default=20, help="prompts and noises of the sizes (20)")
    add("--trainings", type=int, default=3, help="of each gradient (3)")
    add("--iterations", type=int, default=100, help="of a training (100)")
    add("--steps", type=int, default=20, help="of the sampler (20)")
    add("--rank", type=int, default=50, help="of the LoRA (50)")
    add("--lr", type=float, default=1e-3, help="learning rate of AdamW (1e-3)")
    add("--output", type=Path, default=Path("runs/gradients"), help="folder (runs/gradients)")
    options = parser.parse_args(arguments)
    least = min(options.runs, options.trainings, options.iterations, options.steps, options.rank)
    try:
        if least < 1:
            raise FairAdapterError(f"gradients: expected numbers of 1 or more, found {least}")
        files = [options.output / f"gradients.{kind}" for kind in ("json", "png")]
        if present := [str(file) for file in files if file.exists()]:
            raise FairAdapterError(f"{present[0]}: is there already; give another --output or remove it")
        command = shlex.join(["python", "trainer/gradients.py", *(arguments or sys.argv[1:])])
        report = measure(options, command)
        for file, data in zip(files, (json.dumps(report, indent=1).encode(), plot(report))):
            write_bytes(file, data)
    except (FairAdapterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for name in TITLES.values():
        size, loss = np.array(report["steps"][name]["mean"]), np.array(report["loss"][name]["mean"])
        last = loss[-max(1, len(loss) // 10) :].mean()
        rows.append(
            [name, f"{size[0]:.3g}", f"{size[-1]:.3g}", f"{size.max() / size.min():.3g}", f"{last:.3f}"]
        )
    columns = ("gradient", "first step", "last step", "largest / smallest", "loss at the end")
    print_table(columns, rows, "sizes of the steps' shares; loss over the base model's")
    print(f"wrote {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
