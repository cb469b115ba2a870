"""From a configuration to everything that training needs; what is wrong is found here, before the work."""

# pyright: reportArgumentType=false, reportReturnType=false
# (face_bank is a program too: pyright takes the modules it imports absolutely for others)

from __future__ import annotations

import dataclasses
import datetime
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...shared.adapter import FairnessAdapter
from ...shared.adapter_info import AdapterInfo
from ...shared.attributes import TargetDistribution
from ...shared.direct import step_weights
from ...shared.errors import FairAdapterError
from ...shared.preservation import FaceBank
from ...shared.transport import expected_targets, slack
from ..configuration.config import Config, ModelConfig, RunConfig
from ..configuration.prompts import Schedule, training_sets
from ..configuration.settings import plain
from ..face_bank import DrawnFace, bank_of, faces_of_cell, read_bank, write_bank
from ..families.adaptation import Adaptation, AdaptationConfig
from ..families.base import DiffusionModel
from ..families.loading import load_model
from ..families.registry import with_scheduler
from ..families.stable_diffusion import PORTRAIT, StableDiffusion
from ..instruments.encoders import load_encoders
from ..instruments.observer import Observer, load_observer
from ..portrait.card import FILE as CARD
from ..portrait.card import read_card
from ..running.memory import MicroBatches
from ..running.processes import Processes
from ..running.progress import Progress
from .bank import Entry, ReferenceBank, fingerprint, weights_identity
from .loop import Training
from .optimizer import Optimizer
from .targets import TargetDraw, target_space

PROBE = 4  # steps of a sampler that is only looked at
WIDE = 0.1  # of a share, what is worth telling
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_ON_CPU = ("amx_bf16", "avx512_bf16", "bf16")  # the last is ARM's; without one bfloat16 is slower
Say = Callable[[str], None]


def weights_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Of a name in `ModelConfig.dtype`; "auto" is bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        native = any(known.get(feature) for feature in BFLOAT16_ON_CPU)
    return torch.bfloat16 if native else torch.float32


def model_folder(path: str) -> Path:
    """The folder of a base model; 'portrait' is the embedded one."""
    return PORTRAIT if path == "portrait" else Path(path)


def guidance_scale(configured: float | None, path: str, usual: float | None = None) -> float:
    """The configured scale; None takes the one on the model's card, or else the family's `usual` one.

    Raises FairAdapterError if there is none of them.
    """
    if configured is not None:
        return configured
    folder = model_folder(path)
    if path != "portrait" and not (folder / CARD).is_file():
        if usual is not None:
            return usual
        raise FairAdapterError(
            f"{path}: no card says what guidance scale it works at; set model.guidance_scale "
            "(SD 1.5 and 2: 7.5, SDXL: 7, SD 3.5: 4.5)"
        )
    return read_card(folder).guidance_scale


def prepare(
    config: Config,
    processes: Processes,
    say: Say = lambda text: None,
    model: DiffusionModel | None = None,
) -> Training:
    """Load and check everything. Raises FairAdapterError for whatever a user can put right.

    model: in the place of the configured one.
    """
    sets = training_sets(config.prompts.train)
    weights = [source.weight for source in config.prompts.train if source.weight > 0]
    encoders = load_encoders(config.loss.encoders if config.loss.semantics else (), processes.device)
    observer = load_observer(config.faces.classifier, config.faces.detector, encoders, processes.device)
    space = target_space(config.target, observer.target(config.target.text))
    nobody = {a.name: torch.zeros(0, len(a)) for a in space.attributes}
    expected_targets(nobody, space.default, apart=config.loss.apart)  # refuses at once what can't be apart
    targets = TargetDraw(space, config.target.default_share, config.run.seed)
    model = load_base(config.model, processes.device) if model is None else model
    scale = guidance_scale(config.model.guidance_scale, config.model.path, model.guidance_scale)
    step_weights(model.sampler(config.sampling.steps[0]), config.sampling.mode)  # refuses what it can't be
    model.checkpoint(config.sampling.checkpoint != "none", config.sampling.checkpoint == "all")
    adaptation = Adaptation.create(model, space, _adaptation(config))
    adaptation.attach()
    if config.model.compile:
        compile_network(adaptation)
    batches = MicroBatches(config.sampling, _loud(processes, say))
    mark = _Mark(config, scale, adaptation, observer)
    training = Training(
        config=config,
        guidance_scale=scale,
        model=model,
        adaptation=adaptation,
        observer=observer,
        schedule=Schedule(sets, weights, config.run.seed),
        targets=targets,
        references=_references(config, scale, adaptation, observer, batches, mark),
        faces=None,
        optimizer=Optimizer(adaptation, config.optimizer, config.model.dtype == "float16", processes.sum),
        processes=processes,
        batches=batches,
    )
    training.faces = _faces(training, mark, say)
    return training


def left_to_chance(config: Config, target: TargetDistribution) -> str | None:
    """Where a few pictures leave the shares to chance, for people; None where that is not worth telling."""
    n, confidence = config.optimizer.images, config.loss.confidence
    rows = []
    for attribute in target.attributes:
        shares = [float(share) for share in target.marginal(attribute.name)]
        least = min(range(len(attribute)), key=shares.__getitem__)
        low, high = slack(n, shares[least], confidence)
        if high - low > WIDE:
            rows.append(f"{attribute.name} {attribute.classes[least]} {low:.0%} to {high:.0%}")
    if not rows:
        return None
    return (
        f"of {n} pictures at a confidence of {confidence:g} nothing pulls shares within "
        f"{', '.join(rows)}; more optimizer.images or a lower loss.confidence narrow that"
    )


def _loud(processes: Processes, say: Say) -> Say:
    """Of every process, not of the first alone."""
    if processes.first:
        return say
    return lambda text: print(f"process {processes.rank}: {text}", file=sys.stderr, flush=True)


def _adaptation(config: Config) -> AdaptationConfig:
    return AdaptationConfig(**{**vars(config.adapter), "seed": config.run.seed})


def load_base(config: ModelConfig, device: torch.device | str) -> DiffusionModel:
    """The base model as configured. Raises FairAdapterError for what it can't be or can't do."""
    names = ("config", "variant", "without", "vae")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    model = load_model(model_folder(config.path), device, weights_dtype(config.dtype, device), **options)
    if config.size is not None:
        model.resize(config.size)
    if config.scheduler is not None:
        with_scheduler(model, config.scheduler)
    if config.encoding == "paper":
        if not isinstance(model, StableDiffusion):
            raise FairAdapterError(
                f"model.encoding: the paper's is for Stable Diffusion 1.x and 2.x, found {model.title}; set "
                "model.encoding=host"
            )
        model.paper_encoding = True
    if config.empty_negative == "zeros":
        model.zero_empty_negative()
    model.sampler(PROBE)  # a scheduler that can't be used is found here
    return model


def watch_hooks() -> None:
    """Make compiled code look for hooks at every call: a LoRA is one, and comes and goes."""
    import torch._dynamo

    torch._dynamo.config.skip_nnmodule_hook_guards = False


def compile_network(adaptation: Adaptation) -> None:
    """Compile the network in place; say so where that does not work, and go on without.

    Tried with the attached adaptation, in a rollout's way and in a gradient's.
    """
    watch_hooks()
    model = adaptation.base
    model.network.compile()
    latents = torch.zeros(2, *model.latent_shape, device=model.device)
    timesteps = model.sampler(PROBE).timesteps[:1].to(model.device).repeat(2)
    try:
        for graph in (False, True):
            with torch.set_grad_enabled(graph):
                conditioning = adaptation.encode(["", ""])
                for rows in (latents, timesteps, *conditioning.values()):
                    torch._dynamo.maybe_mark_dynamic(rows, 0)  # compiled once for all sizes of a batch
                output = adaptation.denoise(latents, timesteps, conditioning)
        output.float().sum().backward()
    except Exception as error:  # whatever a compiler of this machine throws: the model works without it
        model.network._compiled_call_impl = None
        warnings.warn(f"torch.compile does not work here, going on without: {error}", stacklevel=2)
    finally:
        adaptation.zero_grad(set_to_none=True)


# ---- what the original model draws


def _draw_original(
    config: Config, scale: float, adaptation: Adaptation, batches: MicroBatches
) -> Callable[..., Tensor]:
    """prompts, noise seeds, steps -> images of the base model, drawn without the adapter."""

    def draw(prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        with adaptation.disabled() as model:
            return batches.fit(
                "network",
                lambda size: model.generate(prompts, seeds, scale, steps, size, config.model.negative),
                len(prompts),
            )

    return draw


def _references(
    config: Config,
    scale: float,
    adaptation: Adaptation,
    observer: Observer,
    batches: MicroBatches,
    mark: _Mark,
) -> ReferenceBank:
    original = _draw_original(config, scale, adaptation, batches)

    def draw(entry: Entry, first: int, last: int) -> Tensor:
        seeds = entry.seeds[first:last]
        return original([entry.prompt] * len(seeds), seeds, entry.steps)

    folder = None
    if config.references.cache is not None and config.references.blocks:
        folder = Path(config.references.cache) / f"references-{mark()}"
    return ReferenceBank(draw, observer, bool(config.references.blocks), folder, batches)


@dataclass(frozen=True)
class _Mark:
    """Fingerprint of what the original model's images and their readings depend on."""

    config: Config
    scale: float
    adaptation: Adaptation
    observer: Observer

    def __call__(self, **more: object) -> str:
        return fingerprint({**self._facts, **more})

    @cached_property
    def _facts(self) -> dict[str, object]:
        """Gathered once: billions of weights are read for it."""
        model = self.adaptation.base
        return {
            "model": weights_identity(model),
            "scale": self.scale,
            "negative": self.config.model.negative,
            "observer": self.observer.identity,
            "device": model.device.type,  # images of a GPU and of a CPU differ in their last bits
            "compile": self.config.model.compile,
        }


# ---- faces that changed faces should resemble


def _faces(training: Training, mark: _Mark, say: Say) -> FaceBank | None:
    """The face bank of the configuration, with a face for whatever the target may ask for."""
    config, space = training.config, training.space
    if not config.loss.face or config.faces.bank is None:
        return None
    if config.faces.bank == "model":
        bank = _own_faces(training, mark, say)
    else:
        bank = read_bank(Path(config.faces.bank), training.observer)
    needed = TargetDistribution.uniform(space.attributes) if space.dimension else space.default
    bank.check(needed)
    device = training.model.device
    return FaceBank(bank.features.to(device), {n: value.to(device) for n, value in bank.labels.items()})


def _own_faces(training: Training, mark: _Mark, say: Say) -> FaceBank:
    """Faces that the base model draws when it is told the classes; kept in the cache folder.

    The processes share the combinations, and all get all faces.
    """
    config, space, processes = training.config, training.space, training.processes
    steps = config.sampling.steps[0]
    facts = {"attributes": space.default.names, "faces": config.faces.bank_per_cell, "steps": steps}
    path = None
    if config.references.cache is not None:
        path = Path(config.references.cache) / f"faces-{mark(**facts)}.safetensors"
    kept = processes.from_first(
        lambda: read_bank(path, training.observer) if path is not None and path.is_file() else None
    )
    if kept is not None:
        return kept
    original = _draw_original(config, training.guidance_scale, training.adaptation, training.batches)
    cells = TargetDistribution.uniform(space.attributes).cells
    mine = cells[processes.rank :: processes.count]
    say(f"face bank: {config.faces.bank_per_cell} faces of each of {len(cells)} combinations")
    drawn: list[list[DrawnFace]] = []
    with Progress("face bank, batches", len(mine), quiet=not processes.first) as progress:

        def draw(prompts: list[str], seeds: list[int]) -> Tensor:
            progress.advance()
            return original(prompts, seeds, steps)

        for cell in mine:
            count = config.faces.bank_per_cell
            drawn.append(faces_of_cell(draw, training.observer, space.attributes, cell, count))
    bank = bank_of(
        [face for each in processes.interleaved(drawn, len(cells)) for face in each], training.observer
    )
    if path is not None and processes.first:
        write_bank(bank, path, training.observer)
    return bank


# ---- the adapter file


def adapter_info(
    training: Training, iterations: int, evaluation: dict[str, object] | None = None
) -> AdapterInfo:
    """What the adapter file of a run says about itself."""
    config = training.config
    sets = [{"set": s.set, "weight": s.weight, "templates": list(s.templates)} for s in config.prompts.train]
    return AdapterInfo(
        **_labels(config.run),
        base=training.model.describe(_base_name(config.model)),
        targets=training.space,
        classifier=training.observer.classifier.identity,
        prompts={"train": sets},
        evaluation=evaluation or {},
        configuration={
            **plain(config),
            "guidance_scale": training.guidance_scale,
            "iterations": iterations,
        },
        created=datetime.date.today().isoformat(),
    )


def relabel(path: Path, config: Config) -> None:
    """Write the configured labels into the adapter file of a finished run, where it has others."""
    info = FairnessAdapter.read_info(path)
    base = dataclasses.replace(info.base, name=_base_name(config.model))
    labelled = dataclasses.replace(info, **_labels(config.run), base=base)
    if labelled != info:
        recorded = {**info.configuration, "run": plain(config.run), "model": plain(config.model)}
        labelled = dataclasses.replace(labelled, configuration=recorded)
        dataclasses.replace(FairnessAdapter.read(path), info=labelled).write(path, overwrite=True)


def _labels(run: RunConfig) -> dict[str, str]:
    """What `state.differences` lets a run change of its file."""
    return {name: getattr(run, name) for name in ("name", "description", "author", "licence")}


def _base_name(config: ModelConfig) -> str:
    return config.name or model_folder(config.path).name
