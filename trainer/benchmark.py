"""Measures what an iteration costs by each method, pairwise on the same weights, prompt and noise.

    python trainer/benchmark.py                                 portrait model and a medium U-Net on a CPU,
                                                                Stable Diffusion 1.5 and XL on a GPU
    python trainer/benchmark.py --models sd15 --images 24 --micro-batch 8 --output runs/benchmark.json

One-graph adjusted direct finetuning with checkpointed blocks (what the authors' release does), naive and
truncated back-propagation, and ours in its modes; rollout, references, decoding and losses included. Memory
is the peak above the weights: the allocator's on a GPU, that of live tensors elsewhere. Models with random
weights draw no faces, so that every image has a face at fixed points. What does not fit into a GPU is said
and left out. Prints tables; writes JSON and a plot beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.precision import full_precision
from fair_adapter.shared.tensor_file import write_bytes
from fair_adapter.trainer.benchmark_methods import full_size
from fair_adapter.trainer.benchmark_methods.bias import time_to_bias
from fair_adapter.trainer.benchmark_methods.memory import cost, device_name, peak_tflops, seconds
from fair_adapter.trainer.benchmark_methods.methods import REMEDY, DoesNotFit, Workbench, methods
from fair_adapter.trainer.benchmark_methods.models import build
from fair_adapter.trainer.benchmark_methods.results import COLUMNS, Line, Measurement, plot, worst
from fair_adapter.trainer.families.loading import DTYPES, compile_network
from fair_adapter.trainer.running.memory import memory_told
from fair_adapter.trainer.running.tables import print_table

# model -> images of an iteration, images at a time
SIZES = {"portrait": (4, 4), "medium": (2, 2), "sd15": (24, 8), "sdxl": (8, 2)}
SWEPT = ("one_graph", "both_branches", "subset")
STEPS_SWEEP = (10, 20, 50)


def measure(name: str, options: argparse.Namespace, swept: bool) -> Measurement:
    """All methods on one model.  swept: whether over the numbers of images and steps as well."""
    device = torch.device(options.device)
    images, at_once = SIZES[name]
    images, at_once = options.images or images, options.micro_batch or at_once
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    compared = dtype != "float32" and len(options.methods) != 1
    gradients = _gradients(name, options) if compared else None
    gc.collect()  # that model is none of what is measured
    torch.cuda.empty_cache()
    bench = _bench(name, images, at_once, options.steps, options, dtype)
    known = list(bench.weights())
    works = {method: bench.work(method) for method in bench.methods}
    bench.read_in()
    costs, found = {}, {}
    for method, work in works.items():
        _say(f"{name}: memory and operations of {bench.methods[method].title.strip()}", options)
        with told(f"{name}: ", options), memory_told(REMEDY, DoesNotFit):
            costs[method] = cost(lambda: found.update({method: work().cpu()}), device, known)  # noqa: B023
        gc.collect()
    works = {method: work for method, work in works.items() if method in costs}
    rounds: dict[str, list[float]] = {method: [] for method in works}
    for i in range(options.rounds):
        for method, work in works.items():
            rounds[method].append(seconds(work, device))
        _say(f"{name}: round {i + 1} of {options.rounds}", options)
    if gradients is not None:
        found = gradients
    lines = {
        method: Line(
            bench.methods[method],
            tuple(rounds[method]),
            costs[method].bytes,
            costs[method].allocated,
            costs[method].tflop,
            found.get(method),
        )
        for method in works
    }
    peak = peak_tflops(device, DTYPES[dtype])
    missing = tuple(method for method in bench.methods if method not in works)
    measurement = Measurement(name, images, at_once, options.steps, peak, lines, missing)
    bench.close()
    if swept:
        with told(f"{name}: ", options), memory_told(REMEDY, DoesNotFit):
            measurement.sweeps.update(_sweeps(measurement, dtype, options))
    return measurement


def _bench(
    name: str, images: int, at_once: int, steps: int, options: argparse.Namespace, dtype: str
) -> Workbench:
    model = build(name, torch.device(options.device), DTYPES[dtype])
    if options.size:
        model.resize(options.size)
    bench = Workbench.build(
        model,
        images,
        min(at_once, images),
        steps,
        options.device,
        dtype,
        model.guidance_scale,
        options.rank,
        tuple(options.encoders),
        tuple(options.methods) or _usual(name, options),
        options.checkpoint,
        options.gradient_batch,
    )
    if options.compile:
        torch._dynamo.reset()  # what was compiled for another model counts no more
        compile_network(bench.training.adaptation)
    return bench


def _usual(name: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Methods of a model by name, where none are asked for: none is all. A quarter of an hour of a CPU has
    room for the naive and the truncated ones on one model."""
    if options.device != "cpu" or options.models or name == "portrait":
        return ()
    return tuple(m for m, method in methods(4).items() if method.kind in ("one graph", "decoupled"))


@contextmanager
def told(what: str, options: argparse.Namespace) -> Iterator[None]:
    """Goes on where something does not fit, and says so."""
    try:
        yield
    except DoesNotFit as error:
        _say(f"{what}{error}", options)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gradients(name: str, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Of a single image in float32, where half precision would hide whether methods agree; of those that
    fit."""
    gradients: dict[str, torch.Tensor] = {}
    what = f"{name}: gradients in float32: "
    with told(what, options), memory_told(REMEDY, DoesNotFit), full_precision(torch.device(options.device)):
        bench = _bench(name, 1, 1, options.steps, options, "float32")
        bench.read_in()
        for method in bench.methods:
            with told(what, options), memory_told(REMEDY, DoesNotFit):
                gradients[method] = bench.work(method)().cpu()
        bench.close()
    return gradients


def _sweeps(
    measured: Measurement, dtype: str, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Time over the number of images, time and memory over the number of steps (of one image)."""
    device, name = torch.device(options.device), measured.model
    swept = [method for method in SWEPT if method in measured.lines]
    if not swept:
        return {}
    counts = sorted({1, max(1, measured.images // 2)} - {measured.images})
    over_images: dict[str, list[float]] = {"x": [float(n) for n in (*counts, measured.images)]}
    for count in counts:
        bench = _bench(name, count, measured.micro_batch, options.steps, options, dtype)
        bench.read_in()
        for method in swept:
            over_images.setdefault(method, []).append(seconds(bench.work(method), device))
        bench.close()
        _say(f"{name}: {count} images", options)
    for method in swept:
        over_images.setdefault(method, []).append(measured.lines[method].second)
    times: dict[str, list[float]] = {"x": [float(n) for n in STEPS_SWEEP]}
    bytes_: dict[str, list[float]] = {"x": [float(n) for n in STEPS_SWEEP]}
    for steps in STEPS_SWEEP:
        bench = _bench(name, 1, 1, steps, options, dtype)
        known = list(bench.weights())
        bench.read_in()
        for method in swept:
            work = bench.work(method)
            times.setdefault(method, []).append(seconds(work, device))
            bytes_.setdefault(method, []).append(cost(work, device, known).bytes / 2**20)
        bench.close()
        _say(f"{name}: {steps} steps", options)
    return {"time over images": over_images, "time over steps": times, "memory over steps": bytes_}


def _say(text: str, options: argparse.Namespace) -> None:
    print(f"[{time.perf_counter() - options.began:6.0f} s] {text}", flush=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, write; what the JSON file holds."""
    options.began = time.perf_counter()
    device = torch.device(options.device)
    names = options.models or (["portrait", "medium"] if device.type == "cpu" else ["sd15", "sdxl"])
    measurements = []
    for name in names:
        # on a CPU the first model's sweeps are enough for a quarter of an hour
        swept = options.sweeps and (device.type == "cuda" or name == names[0])
        measurements.append(measure(name, options, swept))
        print_table(COLUMNS, measurements[-1].rows(), f"{name}, {device_name(device)}")
    growths = [m.memory_growth for m in measurements if m.memory_growth is not None]
    table: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "ratios": worst(measurements),
        "memory_growth_10_to_50_steps": max(growths) if growths else None,
        "models": {m.model: m.to_dict() for m in measurements},
        "command": "python trainer/benchmark.py " + " ".join(options.arguments),
    }
    if options.time_to_bias:
        table["time_to_bias"] = time_to_bias(options.device, lambda text: _say(text, options))
    table["seconds"] = time.perf_counter() - options.began
    if options.output:
        write_bytes(options.output, (json.dumps(table, indent=2) + "\n").encode(), overwrite=True)
        picture = plot(measurements)
        if picture is not None:
            write_bytes(options.output.with_suffix(".png"), picture, overwrite=True)
        print(f"wrote {options.output}")
    return table


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, help="JSON file; the plot goes beside it")
    add("--models", nargs="+", choices=tuple(SIZES), help="default: what suits the device")
    add(
        "--methods",
        nargs="+",
        choices=tuple(methods(4)),
        default=(),
        help="such as cached alone, where a graph of all steps does not fit (all)",
    )
    add("--images", type=int, default=0, help="of an iteration (default: by model)")
    add("--micro-batch", type=int, default=0, help="images at a time, in every method (default: by model)")
    add(
        "--gradient-batch",
        type=int,
        default=0,
        help="(image, step) pairs in a call of ours with gradient (twice the images at a time: as many rows "
        "as the one graph's calls with both branches have)",
    )
    add("--steps", type=int, default=20, help="of the sampler (20)")
    add("--rounds", type=int, default=2, help="of timing (2)")
    add("--rank", type=int, default=50, help="of the LoRA (50)")
    add("--size", type=int, default=0, help="px of the pictures (default: the model's)")
    add(
        "--encoders",
        nargs="+",
        default=["embedded"],
        help="of the semantics loss: embedded, open_clip, dinov2 or open_clip:PATH; paper: those two with "
        "random weights (embedded)",
    )
    add(
        "--checkpoint",
        choices=("none", "decoder", "all"),
        default="decoder",
        help="gradient checkpointing of ours; the one graph has it everywhere (decoder)",
    )
    add("--dtype", choices=tuple(DTYPES), help="of the weights (float32 on a CPU, bfloat16 on a GPU)")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--no-sweeps", dest="sweeps", action="store_false", help="nothing over N and the number of steps")
    add(
        "--time-to-bias", action="store_true", help="train the portrait model to a gender bias of .25 as well"
    )
    add("--count", action="store_true", help="count the memory of Z-Image and Krea 2 at full size, and end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(arguments)
    options.arguments = arguments
    if options.count:
        print(full_size.table())
        return 0
    try:
        if (
            min(options.steps, options.rounds, options.rank) < 1
            or min(options.images, options.micro_batch, options.gradient_batch) < 0
        ):
            raise FairAdapterError("--steps, --rounds and --rank: expected 1 or more")
        with memory_told(REMEDY):
            run(options)
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
