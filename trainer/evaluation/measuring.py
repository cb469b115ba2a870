"""Measuring a base model and an adapter on it with the same noises: what evaluate.py and demo.py share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...shared.adapter import AdapterWeights, FairnessAdapter
from ...shared.attributes import Attribute, TargetDistribution
from ...shared.classifiers import load_classifier
from ...shared.errors import FairAdapterError
from ...shared.preservation import SemanticEncoder
from ...shared.window import WHOLE, Window
from ..configuration.config import Config, ModelConfig
from ..configuration.prompts import Prompt
from ..families.adaptation import Adaptation
from ..families.base import LATENT_FACTOR, ImageModel
from ..families.loading import load_base, load_model
from ..instruments.encoders import TextAlignment, load_encoders, load_text_alignment
from ..instruments.identity import fingerprint, weights_identity
from ..instruments.observer import load_observer
from ..running.processes import Processes
from ..running.progress import Progress
from .measures import summarise
from .readings import Plan, Reader, Readings
from .report import SHOWN, Measured
from .rows import Aim
from .worded import Texts, Worded

INDEPENDENT = "evaluator"


@dataclass(frozen=True)
class Instruments:
    """What is measured with.

    classifier: the one of training.  independent: one that training does not use, or None.
    encoder: of image_similarity, or None; more: further ones, such as those of the paper.
    alignment: the CLIP of clip_t, or None.  detector: as in faces.detector.
    cache: where readings are kept between runs, or None.
    """

    classifier: str = "default"
    independent: str | None = INDEPENDENT
    encoder: str | None = "embedded"
    detector: str = "mtcnn"
    cache: Path | None = None
    more: tuple[str, ...] = ()
    alignment: str | None = None

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of all image encoders."""
        return (*([self.encoder] if self.encoder else []), *self.more)

    def look_through(self, device: torch.device | str) -> tuple[list[SemanticEncoder], TextAlignment | None]:
        """The image encoders and the CLIP. Raises FairAdapterError where they can't be had."""
        try:
            clip = load_text_alignment(self.alignment, device) if self.alignment else None
            encoders: list[SemanticEncoder] = []
            for name in self.encoders:
                if clip is not None and name == self.alignment:  # its gigabytes are loaded once
                    encoders.append(clip.visual)
                else:
                    encoders += load_encoders([name], device)
        except FairAdapterError as error:
            text = str(error).removesuffix(" (training: loss.encoders=[embedded])")
            raise FairAdapterError(
                f"{text} (--encoder, --more-encoders and --clip say what a measurement looks through; "
                "--encoder embedded --more-encoders --clip none needs no download)"
            ) from error
        return encoders, clip


class Bench:
    """A base model with everything that it is measured with.

    config: how the model is loaded, in the place of folder and dtype.
    processes: those that share the prompts; all of them get all readings.
    Raises FairAdapterError for models, classifiers and encoders that can't be had.
    """

    def __init__(
        self,
        folder: Path,
        instruments: Instruments,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quiet: bool = False,
        config: ModelConfig | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.encoders = instruments.encoders
        encoders, self.alignment = instruments.look_through(device)
        self.observer = load_observer(instruments.classifier, instruments.detector, encoders, device)
        self.judge: Any = None
        if instruments.independent is not None:
            self.judge = load_classifier(instruments.independent)
            self.judge.to(device)
        self.model = load_model(folder, device, dtype) if config is None else load_base(config, device)
        self.name = folder.name
        self.processes = processes
        self.identity = fingerprint(
            {"weights": weights_identity(self.model), "device": self.model.device.type}
        )
        self.reader = Reader(self.observer, self.judge, instruments.cache, self.alignment, self.model.cues)
        self.quiet = quiet
        self.seconds: dict[str, float] = {}

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Those that the classifier of training reads."""
        return self.observer.attributes

    def facts(self, plan: Plan) -> dict[str, str]:
        """What all figures depend on, besides the prompts, for reports: name -> text."""
        model, encoders = self.model, [encoder.identity for encoder in self.observer.encoders]
        return {
            "model": f"{self.name}, guidance scale {plan.scale:g}, {plan.steps} steps",
            "size": f"{model.latent_shape[-1] * LATENT_FACTOR} px",
            "computed in": f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}",
            "scheduler": model.other_scheduler or type(model.scheduler).__name__,
            "negative prompt": plan.negative or "none",
            "encoding of prompts": model.facts().get("encoding", "host"),
            "classifier": self.observer.classifier.identity,
            "independent classifier": "none" if self.judge is None else self.judge.identity,
            "image encoders": ", ".join(encoders) or "none",
            "CLIP": "none" if self.alignment is None else self.alignment.identity,
        }

    def check(self, adapter: FairnessAdapter) -> tuple[str, ...]:
        """Warnings where an adapter was trained on other weights of the model's kind.

        Raises FairAdapterError for an adapter of another kind of model.
        """
        return adapter.check_base(self.model.describe(self.name))

    def original(self, prompts: Sequence[Prompt], plan: Plan, target: Aim) -> Measured:
        """The base model's figures.  target: of all prompts, or one for each."""
        readings = self._read(self.model, self.identity, prompts, plan, "original")
        return Measured(self._figures(readings, prompts, target), readings)

    def adapted(
        self,
        adapter: FairnessAdapter,
        prompts: Sequence[Prompt],
        plan: Plan,
        original: Measured,
        target: TargetDistribution | str | None = None,
        strength: float = 1.0,
        window: Window = WHOLE,
    ) -> Measured:
        """The figures with an adapter as the hosts apply it, at a target (None: its default) and strength, in
        a part of the steps.

        Raises FairAdapterError for an adapter of another base model.
        """
        weights = adapter.at(target, strength)
        readings = self._read_at(adapter, prompts, plan, weights, window)
        return Measured(self._figures(readings, prompts, weights.target, original, adapter), readings)

    def _read_at(
        self,
        adapter: FairnessAdapter,
        prompts: Sequence[Prompt],
        plan: Plan,
        weights: AdapterWeights,
        window: Window,
    ) -> list[Readings]:
        """What is drawn with an adapter. Raises as `check`."""
        self.check(adapter)
        identity = f"{self.identity} {weights.content_hash}"
        if adapter.negative_tokens:
            identity += " before the negative prompt too"
        if not window.whole:
            identity += f" {window.to_text()}"
        if not weights.soft and not weights.lora:
            return self._read(self.model, self.identity, prompts, plan, "strength 0")
        with Adaptation.from_weights(self.model, weights, adapter.negative_tokens) as adaptation:
            return self._read(adaptation.adapted(None, window), identity, prompts, plan, "with the adapter")

    def adapted_each(
        self,
        adapter: FairnessAdapter,
        prompts: Sequence[Prompt],
        plan: Plan,
        original: Measured,
        targets: Sequence[TargetDistribution],
        strength: float = 1.0,
        window: Window = WHOLE,
    ) -> Measured:
        """As `adapted`, each prompt at its own target and measured against it."""
        groups: dict[TargetDistribution, list[int]] = {}
        for place, target in enumerate(targets):
            groups.setdefault(target, []).append(place)
        readings: dict[int, Readings] = {}
        for target, places in groups.items():
            chosen = [prompts[place] for place in places]
            weights = adapter.at(target, strength)
            readings |= zip(places, self._read_at(adapter, chosen, plan, weights, window))
        ordered = [readings[place] for place in range(len(prompts))]
        return Measured(self._figures(ordered, prompts, targets, original, adapter), ordered)

    def worded(
        self,
        texts: Texts,
        prompts: Sequence[Prompt],
        plan: Plan,
        original: Measured,
        target: TargetDistribution,
    ) -> Measured:
        """The base model's figures where every picture has a text of its own, from the same noises."""
        identity = f"{self.identity} {fingerprint({'texts': texts})}"
        readings = self._read(Worded(self.model, texts), identity, prompts, plan, "in words")
        return Measured(self._figures(readings, prompts, target, original), readings)

    def _figures(
        self,
        readings: Sequence[Readings],
        prompts: Sequence[Prompt],
        target: Aim,
        original: Measured | None = None,
        adapter: FairnessAdapter | None = None,
    ) -> dict[str, Any]:
        base = None if original is None else original.readings
        judges = () if self.judge is None else self.judge.attributes
        cues = self.model.cues
        prompts = [replace(p, cue=None if cues is None else cues.of(p.name)) for p in prompts]
        encoders = [encoder.identity for encoder in self.observer.encoders]
        figures = summarise(readings, prompts, self.attributes, target, base, judges, encoders)
        figures["encoders"] = encoders
        if adapter is not None:
            trained = trained_encoders(adapter.info.configuration)
            # by kind: a local copy has another identity and is the same network
            used = [i for i, name in zip(encoders, self.encoders) if name.partition(":")[0] in trained]
            figures["trained_encoders"] = used
        return figures

    def _read(
        self, model: ImageModel, identity: str, prompts: Sequence[Prompt], plan: Plan, what: str
    ) -> list[Readings]:
        began, readings, drawn = time.perf_counter(), [], self.reader.drawn
        count, rank = (self.processes.count, self.processes.rank) if self.processes else (1, 0)
        mine = prompts[rank::count]
        with Progress(f"measuring, {what}", len(mine), quiet=self.quiet or rank > 0) as progress:
            for i, reading in enumerate(self.reader.read_all(model, identity, mine, plan, progress.say)):
                shown = rank + i * count < SHOWN
                readings.append(reading if shown else reading.without_pictures())
                progress.advance(f"{len(reading.labels)} pictures of each prompt")
                if self.reader.drawn == drawn:  # found on the disk, which says nothing of the time left
                    progress.begin()
                drawn = self.reader.drawn
        if self.processes is not None:
            readings = self.processes.interleaved(readings, len(prompts))
        spent = time.perf_counter() - began
        self.seconds[f"measuring {what}"] = self.seconds.get(f"measuring {what}", 0.0) + spent
        return readings


def asked_encoders(config: Config) -> tuple[str, ...]:
    """Names of the image encoders that a configuration measures with: those it names, or its loss's own."""
    asked = config.evaluation.encoders
    return config.loss.encoders if asked is None else asked


def trained_encoders(configuration: Mapping[str, Any]) -> set[str]:
    """Kinds of the image encoders that an adapter's training kept pictures alike in the eyes of, as its file
    tells: embedded, open_clip, dinov2. Empty if it tells nothing."""
    loss = configuration.get("loss")
    if not isinstance(loss, Mapping) or not loss.get("semantics"):
        return set()
    names = loss.get("encoders")
    return {str(name).partition(":")[0] for name in names} if isinstance(names, (list, tuple)) else set()
