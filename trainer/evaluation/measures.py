"""Figures of a measured model, as report.json holds them.

    gender, race, age, gender_x_race   bias (the paper's), ci95, floor, n_per_prompt, shares, std, prompts;
                                       where a target is given target_error and target_floor as well
    face_rate            share of pictures with a face
    text_alignment       share of pictures whose cue is the prompt's (portrait model), else null
    identity_diversity   mean distance of the unit face features of two pictures of a prompt; _alike: of two
                         that are read as the same classes
    image_similarity     mean cosine of image features with the original model's picture of the same noise, by
                         the first image encoder; image_similarities by each, where there are several
    clip_t               mean cosine of pictures with their prompt in CLIP's space, where it was measured
    independent          bias figures by the classifier that training does not use

Distances and similarities compare pictures of the same prompt, so that they say nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...shared.attributes import Attribute, TargetDistribution
from ...shared.errors import FairAdapterError
from ...shared.metrics import (
    class_counts,
    frequencies,
    joint_labels,
    measure_bias,
    target_error,
    target_error_floor,
)
from ..configuration.prompts import Prompt
from .readings import Readings


def summarise(
    readings: Sequence[Readings],
    prompts: Sequence[Prompt],
    attributes: Sequence[Attribute],
    target: TargetDistribution | None = None,
    original: Sequence[Readings] | None = None,
    judges: Sequence[Attribute] = (),
    encoders: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of one model over some prompts, as JSON values.

    attributes: the observer's.  original: the base model's readings of the same prompts and noises; None
    where these are they.  judges: attributes of the independent classifier.
    encoders: names of the image encoders of the readings.
    """
    result: dict[str, Any] = bias_figures([r.labels for r in readings], attributes, target)
    result["face_rate"] = float(np.mean([r.has_face.mean() for r in readings]))
    result["text_alignment"] = cue_share(readings, prompts)
    result["identity_diversity"] = identity_diversity(readings)
    result["identity_diversity_alike"] = identity_diversity(readings, alike=True)
    result["image_similarity"] = image_similarity(readings, original)
    if len(encoders) > 1:
        result["image_similarities"] = {
            name: image_similarity(readings, original, i) for i, name in enumerate(encoders)
        }
    if readings and all(len(r.texts) for r in readings):
        result["clip_t"] = float(np.mean([r.texts.mean() for r in readings]))
    if readings and all(np.isfinite(r.texture).any() for r in readings):
        result["skin_texture"] = float(np.mean([np.nanmean(r.texture) for r in readings]))
    result["pictures"] = int(sum(len(r.labels) for r in readings))
    if judges:
        result["independent"] = bias_figures([r.judged for r in readings], judges, target)
    return result


def bias_figures(
    labels: Sequence[np.ndarray], attributes: Sequence[Attribute], target: TargetDistribution | None
) -> dict[str, Any]:
    """Attribute -> figures, and gender_x_race, from labels (n, A) of each prompt; null without any face."""
    figures: dict[str, Any] = {}
    columns = {a.name: [rows[:, i] for rows in labels] for i, a in enumerate(attributes)}
    for attribute in attributes:
        figures[attribute.name] = _figures(columns[attribute.name], [attribute], target)
    pair = [a for a in attributes if a.name in ("gender", "race")]
    if len(pair) == 2:
        figures["gender_x_race"] = _figures(joint_labels(columns, pair), pair, target)
    return figures


def _figures(
    labels: Sequence[np.ndarray], attributes: Sequence[Attribute], target: TargetDistribution | None
) -> dict[str, Any] | None:
    """Of the classes of one attribute, or of the cells of several, in row-major order."""
    cells = ["*".join(cell) for cell in TargetDistribution.uniform(attributes).cells]
    try:
        counts = class_counts(labels, len(cells))
    except FairAdapterError:  # not one face
        return None
    table = measure_bias(labels, cells).to_dict()
    # an adapter's target may be of another classifier's classes, such as four races for these three
    if target is not None and set(attributes) <= set(target.attributes):
        wanted = target.marginal(*(a.name for a in attributes)).reshape(-1)
        table["target_error"] = float(target_error(frequencies(counts), wanted).mean())
        table["target_floor"] = float(
            np.mean([target_error_floor(int(n), wanted) for n in counts.sum(axis=1)])
        )
    return table


def cue_share(readings: Sequence[Readings], prompts: Sequence[Prompt]) -> float | None:
    """Share of pictures in which the cue of their prompt is recognised; None if no prompt has a cue."""
    shares = [(r.cues == p.cue).mean() for r, p in zip(readings, prompts) if p.cue is not None]
    return float(np.mean(shares)) if shares else None


def identity_diversity(readings: Sequence[Readings], alike: bool = False) -> float | None:
    """Mean over prompts of the mean distance of the unit face features of two pictures; None without pairs.

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
    return float(np.mean(spreads)) if spreads else None


def image_similarity(
    readings: Sequence[Readings], original: Sequence[Readings] | None, encoder: int = 0
) -> float | None:
    """Mean cosine of the image features of pictures of the same prompt and noise; None without an encoder.

    original: None where these are its readings.
    """
    if not readings or not readings[0].features.shape[1]:
        return None
    if original is None:
        return 1.0
    pairs = [(r.encoded()[encoder], o.encoded()[encoder]) for r, o in zip(readings, original)]
    return float(np.mean([(a * b).sum(axis=1).mean() for a, b in pairs]))


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
