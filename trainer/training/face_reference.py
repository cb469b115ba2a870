"""Faces that changed faces should resemble: the face bank of a configuration, from a file or drawn."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...shared.attributes import TargetDistribution
from ...shared.preservation import FaceBank
from ..instruments.face_bank import DrawnFace, bank_of, faces_of_cell, read_bank, write_bank
from ..running.progress import Progress, Say
from .loop import Training
from .originals import Mark, draw_original


def face_bank(training: Training, mark: Mark, say: Say) -> FaceBank | None:
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


def _own_faces(training: Training, mark: Mark, say: Say) -> FaceBank:
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
    original = draw_original(config, training.guidance_scale, training.adaptation, training.batches)
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
