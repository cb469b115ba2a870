"""Fits the heads of both judges, the default chain and the evaluator, on faces whose labels are known.

    python trainer/face_chain/fit_judges.py PEOPLE FACES [--photos DIR] [--pictures DIR ...] [--write]

PEOPLE is a folder of trainer/portrait/render.py, whose labels are true by construction. FACES holds faces.csv
and images/: synthetic portraits, labelled by the words they were searched for, each picture once. Where the
words say nothing of gender or age, what the net itself is sure of counts, which keeps it good on photographs.

The default chain learns from half a of the split `fit`, the evaluator from half b, which are other people,
and both from the portraits. Weight decay and temperatures are chosen on the split `validation` and on
portraits that the head did not see. Measured are the split `test` (people, hairstyles, outfits and a light
that nobody saw), --photos (photos.csv with gender and age) and, for each folder of --pictures, on how many
generated faces both say the same; beside each figure that of the heads now stored. --write stores the new
ones in `shared/weights/`. What the nets say is kept in --work, so that a second run takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fair_adapter.shared.attributes import AGE, Attribute
from fair_adapter.shared.classifiers import default, evaluator, load_classifier
from fair_adapter.shared.classifiers.base import CALIBRATION
from fair_adapter.shared.classifiers.heads import ATTRIBUTES, YEARS, Heads
from fair_adapter.shared.metrics import wilson_interval
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.trainer.face_chain.calibrate import write_calibration
from fair_adapter.trainer.face_chain.convert_weights import write
from fair_adapter.trainer.face_chain.head_fitting import (
    Domain,
    Fitted,
    Head,
    accuracy,
    fit_attribute,
    fit_years,
    own_classes,
    people_classes,
    portrait_classes,
)
from fair_adapter.trainer.face_chain.judge_faces import Faces, JudgeNets, folder_rows, read_faces, table_rows
from fair_adapter.trainer.running.exits import exit_code
from fair_adapter.trainer.running.tables import print_table

HALVES = {default.NAME: "a", evaluator.NAME: "b"}
FILES = {default.NAME: default.FILES["heads"], evaluator.NAME: evaluator.HEADS_FILE}
WIDTHS = {default.NAME: default.EMBEDDING, evaluator.NAME: evaluator.EMBEDDING}


class Study:
    """The faces of a run, the heads fitted on them and those that are stored now."""

    def __init__(self, options: argparse.Namespace) -> None:
        nets = JudgeNets(options.weights)

        def read(kind: str, pictures: list, variants: int = 2) -> Faces:
            return read_faces(pictures, nets, options.work / f"{kind}.npz", variants)

        self.people = read("people", table_rows(options.people / "labels.csv"))
        self.portraits = read("portraits", table_rows(options.faces / "faces.csv"))
        self.photos = read("photos", table_rows(options.photos / "photos.csv"), 0) if options.photos else None
        self.drawn = {p.name: read(f"drawn_{p.name}", folder_rows(p), 0) for p in options.pictures}
        self.splits = np.array([f"{r['split']} {r['half']}".strip() for r in self.people.rows])
        self.fitted: dict[str, dict[str, Fitted]] = {}
        self.stored = {judge: self._stored(options.weights, judge) for judge in FILES}

    def _stored(self, folder: Path, judge: str) -> Heads | None:
        path = folder / FILES[judge]
        return Heads(path, WIDTHS[judge]) if path.is_file() else None

    def fit(self) -> None:
        for judge in FILES:
            self.fitted[judge] = {}
            for attribute in ATTRIBUTES:
                people = Domain(self.people, people_classes(self.people, attribute))
                words = Domain(self.portraits, portrait_classes(self.portraits, attribute))
                own = own_classes(self.portraits.inputs[judge][:, 0], attribute)
                portraits = Domain(self.portraits, torch.where(words.classes >= 0, words.classes, own))
                self.fitted[judge][attribute.name] = fit_attribute(
                    judge,
                    people.where(self._learnt(judge)),
                    people.where(torch.from_numpy(self.splits == "validation")),
                    portraits,
                    words,
                )

    def _learnt(self, judge: str) -> Tensor:
        return torch.from_numpy(self.splits == f"fit {HALVES[judge]}")

    def years_head(self, judge: str) -> Head:
        """True years of rendered people; on portraits, of which none are known, the net's own."""
        learnt = self._learnt(judge)
        years = torch.tensor([float(r["age"]) for r in self.people.rows])[learnt]
        inputs, own = self.people.inputs[judge][learnt], self.portraits.inputs[judge].flatten(0, 1)
        people = (inputs.flatten(0, 1), years.repeat_interleave(inputs.shape[1]))
        return fit_years([people, (own, own[:, -1] * 100)])

    def reader(self, judge: str, new: bool) -> Callable[[str, Tensor], Tensor] | None:
        """(attribute, inputs) -> logits, by the fitted heads or the stored ones; None without."""
        if new:
            heads = {name: fitted.head for name, fitted in self.fitted[judge].items()}
            return lambda name, inputs: F.linear(inputs, *heads[name])
        stored = self.stored[judge]
        return None if stored is None else lambda name, inputs: stored(inputs)[name]

    def test(self, judge: str, attribute: Attribute, new: bool = True) -> tuple[float, int, int] | None:
        """`accuracy` on the split that nobody saw."""
        people = Domain(self.people, people_classes(self.people, attribute))
        return self._accuracy(judge, attribute, people.where(torch.from_numpy(self.splits == "test")), new)

    def on_photos(self, judge: str, attribute: Attribute, new: bool = True) -> tuple[float, int, int] | None:
        if self.photos is None:
            return None
        return self._accuracy(
            judge, attribute, Domain(self.photos, people_classes(self.photos, attribute)), new
        )

    def _accuracy(
        self, judge: str, attribute: Attribute, domain: Domain, new: bool
    ) -> tuple[float, int, int] | None:
        read, (inputs, classes) = self.reader(judge, new), domain.of(judge, variants=False)
        if read is None or not len(classes):
            return None
        return accuracy(read(attribute.name, inputs), classes, balanced=attribute == AGE)

    def agreement(self, faces: Faces, attribute: Attribute, new: bool) -> tuple[int, int] | None:
        """On how many of the faces both judges say the same."""
        readers = [(self.reader(judge, new), faces.inputs[judge][:, 0]) for judge in FILES]
        if any(read is None for read, _ in readers):
            return None
        first, second = (read(attribute.name, x).argmax(1) for read, x in readers if read is not None)
        return int((first == second).sum()), len(first)

    def write(self, folder: Path) -> None:
        """The head files, and the default chain's temperatures."""
        portraits = f"{len(self.portraits)} synthetic portraits"
        for judge, path in ((judge, folder / file) for judge, file in FILES.items()):
            learnt = int(self._learnt(judge).sum())
            heads = {name: fitted.head for name, fitted in self.fitted[judge].items()}
            heads[YEARS] = self.years_head(judge)
            tensors = {
                f"{name}.{kind}": t
                for name, head in heads.items()
                for kind, t in zip(("weight", "bias"), head)
            }
            notes = {
                "source": f"own heads, fitted on {learnt} rendered people, {portraits}",
                "licence": "MIT",
                "classes": {a.name: list(a.classes) for a in ATTRIBUTES},
                "temperatures": {n: f.calibration.temperature for n, f in self.fitted[judge].items()},
                "accuracy": {a.name: _record(self.test(judge, a)) for a in ATTRIBUTES},
            }
            write(path, tensors, notes)
        chain = load_classifier(default.NAME, folder)
        found = {name: fitted.calibration for name, fitted in self.fitted[default.NAME].items()}
        checked = int((self.splits == "validation").sum())
        source = f"{checked} rendered people, {portraits}"
        write_calibration(CALIBRATION, chain, default.NAME, source, found)


def _record(found: tuple[float, int, int] | None) -> dict[str, float]:
    assert found is not None  # the split test is never empty: `Study.test` measures what `fit` was given
    _, correct, count = found
    low, high = wilson_interval(correct, count)
    return {"correct": correct, "count": count, "low": round(low, 4), "high": round(high, 4)}


def _share(found: tuple[float, int, int] | None) -> str:
    if found is None:
        return "-"
    low, high = wilson_interval(found[1], found[2])
    return f"{found[0]:.3f} [{low:.3f}, {high:.3f}] n={found[2]}"


def report(study: Study) -> None:
    """Prints the tables."""
    rows = []
    for judge in FILES:
        for a in ATTRIBUTES:
            fitted = study.fitted[judge][a.name]
            figures = [
                measure(judge, a, new) for measure in (study.test, study.on_photos) for new in (True, False)
            ]
            rows.append(
                [
                    judge,
                    a.name,
                    *map(_share, figures),
                    f"{fitted.decay:g}",
                    f"{fitted.calibration.temperature:.2f}",
                ]
            )
    columns = [
        "judge",
        "attribute",
        "test people",
        "stored now",
        "photos",
        "stored now",
        "decay",
        "temperature",
    ]
    print_table(columns, rows, "right answers [95% Wilson]; age: mean over the classes")
    _report_years(study)
    for name, faces in study.drawn.items():
        shares = [
            [a.name, *(_same(study.agreement(faces, a, new)) for new in (True, False))] for a in ATTRIBUTES
        ]
        print_table(["attribute", "both judges agree", "stored now"], shares, f"{name}, {len(faces)} faces")


def _same(found: tuple[int, int] | None) -> str:
    return "-" if found is None else _share((found[0] / found[1], *found))


def _report_years(study: Study) -> None:
    """Mean absolute error of the years by the heads, and by the net's own."""
    test = torch.from_numpy(study.splits == "test")
    sets: Mapping[str, tuple[Faces, Tensor]] = {"test people": (study.people, test)}
    if study.photos is not None:
        sets = {**sets, "photos": (study.photos, torch.ones(len(study.photos), dtype=torch.bool))}
    for judge in FILES:
        weight, bias = study.years_head(judge)
        for name, (faces, chosen) in sets.items():
            inputs = faces.inputs[judge][chosen, 0]
            true = torch.tensor([float(r["age"]) for r in faces.rows])[chosen]
            errors = [
                float((x - true).abs().mean())
                for x in ((inputs @ weight.T + bias)[:, 0], inputs[:, -1] * 100)
            ]
            off = f"{errors[0]:.2f}, by the net itself {errors[1]:.2f}"
            print(f"years off, {judge}, {name}: {off} (n={len(true)})")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("people", type=Path, help="folder of trainer/portrait/render.py")
    parser.add_argument("faces", type=Path, help="folder with faces.csv and images/")
    parser.add_argument("--photos", type=Path, help="folder with photos.csv; measuring only")
    parser.add_argument(
        "--pictures", type=Path, nargs="*", default=[], help="folders of generated PNG pictures"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/judges"), help="readings, kept between runs")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FOLDER, help="folder of the nets and heads")
    parser.add_argument("--write", action="store_true", help="store the heads there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)

    def work() -> None:
        study = Study(options)
        study.fit()
        report(study)
        if options.write:
            study.write(options.weights)

    return exit_code(work, KeyError, ValueError)


if __name__ == "__main__":
    sys.exit(main())
