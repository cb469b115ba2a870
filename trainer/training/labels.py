"""What the adapter file of a run says about itself."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from ...shared.adapter import FairnessAdapter
from ...shared.adapter_info import AdapterInfo
from ..configuration.config import Config, ModelConfig, RunConfig
from ..configuration.settings import plain
from ..families.loading import model_folder
from .loop import Training


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
