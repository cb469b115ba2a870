"""Figures of a measured model, as report.json holds them.

    gender, race, age, gender_x_race   bias (the paper's), ci95, floor, n_per_prompt, shares, std, prompts;
                                       where a target is given target_error, target_ci95, target_floor too,
                                       of each prompt against its own where each has one
    face_rate            share of pictures with a face
    text_alignment       share of pictures whose cue is the prompt's (portrait model), else null
    identity_diversity   mean distance of the unit face features of two pictures of a prompt; _alike: of two
                         that are read as the same classes
    image_similarity     mean cosine of image features with the original model's picture of the same noise, by
                         the first image encoder; image_similarities by each, where there are several
    clip_t               mean cosine of pictures with their prompt in CLIP's space, where it was measured
    skin_texture         contrast of the fine detail of the faces
    intervals            95% intervals of these, each under its name
    independent          bias figures by the classifier that training does not use
    difference           what an adapter adds to the original's bias figures, pictures of the same noise
                         paired: bias, ci95; where a target is given target_error, target_ci95, and the
                         original's own as target_error_before; independent as well
    encoders             names of the image encoders; trained_encoders: those of an adapter's training
    prompts, pictures    how many

Distances and similarities compare pictures of the same prompt, so that they say nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...shared.attributes import JOINT, PAIR, Attribute, TargetDistribution
from ...shared.errors import FairAdapterError
from ...shared.metrics import (
    bootstrap_interval,
    class_counts,
    joint_labels,
    mean_over_prompts,
    measure_bias,
    paired_counts,
    paired_difference,
    prompt_interval,
    target_error,
    target_error_floor,
)
from ..configuration.prompts import Prompt
from .prompt_targets import added_off_target, faces_of, off_target, wanted_shares
from .readings import Readings
from .rows import Aim

Columns = dict[str, tuple[list[Attribute], list[np.ndarray]]]


def summarise(
    readings: Sequence[Readings],
    prompts: Sequence[Prompt],
    attributes: Sequence[Attribute],
    target: Aim = None,
    original: Sequence[Readings] | None = None,
    judges: Sequence[Attribute] = (),
    encoders: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of one model over some prompts, as JSON values.

    attributes: the observer's.  target: of all prompts, or one for each.  original: the base model's readings
    of the same prompts and noises; None where these are they.  judges: attributes of the independent
    classifier.
    encoders: names of the image encoders of the readings.
    """
    result: dict[str, Any] = bias_figures([r.labels for r in readings], attributes, target)
    result |= kept_figures(readings, prompts, original, encoders)
    result["prompts"] = len(readings)
    result["pictures"] = int(sum(len(r.labels) for r in readings))
    if judges:
        result["independent"] = bias_figures([r.judged for r in readings], judges, target)
    if original is not None:
        before, after = ([r.labels for r in model] for model in (original, readings))
        result["difference"] = difference_figures(before, after, attributes, target)
        if judges:
            before, after = ([r.judged for r in model] for model in (original, readings))
            result["difference"]["independent"] = difference_figures(before, after, judges, target)
    return result


# ---- bias


def bias_figures(
    labels: Sequence[np.ndarray], attributes: Sequence[Attribute], target: Aim
) -> dict[str, Any]:
    """Attribute -> figures, and gender_x_race, from labels (n, A) of each prompt; null without any face."""
    return {
        name: _figures(rows, parts, target) for name, (parts, rows) in _columns(labels, attributes).items()
    }


def difference_figures(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    attributes: Sequence[Attribute],
    target: Aim,
) -> dict[str, Any]:
    """Attribute -> what `after` adds to `before`, from labels (n, A) of the same prompts and noises; null
    where one of them has no face."""
    figures: dict[str, Any] = {}
    second = _columns(after, attributes)
    for name, (parts, rows) in _columns(before, attributes).items():
        counts = paired_counts(rows, second[name][1], len(_cells(parts)))
        added, interval = paired_difference(counts)
        figures[name] = None if np.isnan(added) else {"bias": added, "ci95": list(interval)}
        if figures[name] is None:
            continue
        if isinstance(target, Sequence):
            figures[name] |= _added_to_own(rows, second[name][1], parts, target)
            continue
        wanted = _wanted(parts, target)
        if wanted is not None:
            off = partial(target_error, target=wanted)
            added, interval = paired_difference(counts, off)
            base = float(mean_over_prompts(counts.sum(axis=2)[:, :-1], off))
            figures[name] |= {
                "target_error": added,
                "target_ci95": list(interval),
                "target_error_before": base,
            }
    return figures


def _columns(labels: Sequence[np.ndarray], attributes: Sequence[Attribute]) -> Columns:
    """Name of a figure -> its attributes, and for each prompt (n,) classes or cells, -1 for none."""
    columns = {a.name: [rows[:, i] for rows in labels] for i, a in enumerate(attributes)}
    found: Columns = {a.name: ([a], columns[a.name]) for a in attributes}
    pair = [a for a in attributes if a.name in JOINT]
    if len(pair) == len(JOINT):
        found[PAIR] = (pair, joint_labels(columns, pair))
    return found


def _cells(attributes: Sequence[Attribute]) -> list[str]:
    """The classes of one attribute, or the cells of several, in row-major order."""
    return ["*".join(cell) for cell in TargetDistribution.uniform(attributes).cells]


def _added_to_own(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    parts: Sequence[Attribute],
    targets: Sequence[TargetDistribution],
) -> dict[str, Any]:
    wanted, classes = wanted_shares(parts, targets), len(_cells(parts))
    if wanted is None:
        return {}
    return added_off_target(faces_of(before, classes), faces_of(after, classes), wanted)


def _wanted(attributes: Sequence[Attribute], target: TargetDistribution | None) -> np.ndarray | None:
    """Shares (K,) that a target asks of these cells; None where it says nothing of them."""
    # an adapter's target may be of another classifier's classes, such as four races for these three
    if target is None or not set(attributes) <= set(target.attributes):
        return None
    return target.marginal(*(a.name for a in attributes)).reshape(-1)


def _figures(
    labels: Sequence[np.ndarray], attributes: Sequence[Attribute], target: Aim
) -> dict[str, Any] | None:
    """Of the cells of some attributes."""
    cells = _cells(attributes)
    try:
        counts = class_counts(labels, len(cells))
    except FairAdapterError:  # not one face
        return None
    table = measure_bias(labels, cells).to_dict()
    if isinstance(target, Sequence):
        own = wanted_shares(attributes, target)
        return table if own is None else {**table, **off_target(faces_of(labels, len(cells)), own)}
    wanted = _wanted(attributes, target)
    if wanted is not None:
        off = partial(target_error, target=wanted)
        table["target_error"] = float(mean_over_prompts(counts, off))
        table["target_ci95"] = list(bootstrap_interval(counts, off))
        floors = [target_error_floor(int(n), wanted) for n in counts.sum(axis=1)]
        table["target_floor"] = float(np.mean(floors))
    return table


# ---- what should stay as it was


def kept_figures(
    readings: Sequence[Readings],
    prompts: Sequence[Prompt],
    original: Sequence[Readings] | None,
    encoders: Sequence[str],
) -> dict[str, Any]:
    """Measures by name, null where no prompt has any, and their `intervals`."""
    measures: dict[str, np.ndarray] = {
        "face_rate": np.array([r.has_face.mean() for r in readings]),
        "text_alignment": cue_shares(readings, prompts),
        "identity_diversity": identity_diversity(readings),
        "identity_diversity_alike": identity_diversity(readings, alike=True),
        "image_similarity": image_similarity(readings, original),
    }
    if readings and all(len(r.texts) for r in readings):
        measures["clip_t"] = np.array([r.texts.mean() for r in readings])
    if readings and all(np.isfinite(r.texture).any() for r in readings):
        measures["skin_texture"] = np.array([np.nanmean(r.texture) for r in readings])
    result: dict[str, Any] = {name: _mean(values) for name, values in measures.items()}
    intervals: dict[str, Any] = {name: _interval(values) for name, values in measures.items()}
    if len(encoders) > 1:
        each = {name: image_similarity(readings, original, i) for i, name in enumerate(encoders)}
        result["image_similarities"] = {name: _mean(values) for name, values in each.items()}
        intervals["image_similarities"] = {name: _interval(values) for name, values in each.items()}
    return {**result, "intervals": intervals}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(values: np.ndarray) -> list[float] | None:
    """None where the prompts show no spread: none, one alone or all exactly alike."""
    if len(np.unique(values)) < 2:
        return None
    found = prompt_interval(values, within=(values.min(), values.max()))
    return None if found is None else list(found)


def cue_shares(readings: Sequence[Readings], prompts: Sequence[Prompt]) -> np.ndarray:
    """Share of pictures in which the cue of their prompt is recognised, of each prompt that has a cue."""
    return np.array([(r.cues == p.cue).mean() for r, p in zip(readings, prompts) if p.cue is not None])


def identity_diversity(readings: Sequence[Readings], alike: bool = False) -> np.ndarray:
    """Mean distance of the unit face features of two pictures, of each prompt that has such pairs.

    alike: only pairs of the same class in every attribute, whose distance does not grow when shares even out.
    """
    spreads = []
    for reading in readings:
        faces = reading.faces[reading.has_face].astype(np.float64)
        labels = reading.labels[reading.has_face]
        pair = np.triu(np.ones((len(faces), len(faces)), dtype=bool), 1)
        if alike:
            pair &= (labels[:, None] == labels[None]).all(axis=2)
        if pair.any():
            spreads.append(np.sqrt(np.clip(2 - 2 * faces @ faces.T, 0, None))[pair].mean())
    return np.array(spreads)


def image_similarity(
    readings: Sequence[Readings], original: Sequence[Readings] | None, encoder: int = 0
) -> np.ndarray:
    """Mean cosine of the image features of pictures of the same noise, of each prompt.

    original: None where these are its readings.  Empty without an encoder.
    """
    if not readings or not readings[0].features.shape[1]:
        return np.zeros(0)
    if original is None:
        return np.ones(len(readings))
    pairs = [(r.encoded()[encoder], o.encoded()[encoder]) for r, o in zip(readings, original)]
    return np.array([(a * b).sum(axis=1).mean() for a, b in pairs], dtype=np.float64)


def shares_by_prompt(
    readings: Sequence[Readings], attributes: Sequence[Attribute]
) -> dict[str, list[list[float] | None]]:
    """attribute -> for each prompt the share of each class among its faces, None without a face."""
    table: dict[str, list[list[float] | None]] = {}
    for i, attribute in enumerate(attributes):
        rows: list[list[float] | None] = []
        for reading in readings:
            counts = np.bincount(reading.labels[reading.has_face, i], minlength=len(attribute))
            rows.append((counts / counts.sum()).tolist() if counts.sum() else None)
        table[attribute.name] = rows
    return table
