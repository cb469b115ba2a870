"""The heads of both judges: what they read, how they are fitted, on whom, and bad input."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fair_adapter.shared.attributes import AGE, GENDER, RACE
from fair_adapter.shared.classifiers import default, evaluator
from fair_adapter.shared.classifiers.heads import ATTRIBUTES, OWN, Heads, head_inputs
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.tests.fixture_faces import FOLDER, aligned, chain, images
from fair_adapter.trainer.face_chain import fit_judges, judge_faces
from fair_adapter.trainer.face_chain.head_fitting import (
    Domain,
    accuracy,
    fit_attribute,
    fit_head,
    fit_years,
    own_classes,
    people_classes,
    portrait_classes,
)
from fair_adapter.trainer.face_chain.judge_faces import Faces


def faces(rows: list[dict[str, str]], inputs: torch.Tensor, hashes: torch.Tensor | None = None) -> Faces:
    if hashes is None:
        hashes = torch.rand(len(rows), 256, generator=torch.Generator().manual_seed(1)) < 0.5
    return Faces(rows, {"default": inputs, "evaluator": inputs}, hashes)


def clouds(count: int, classes: torch.Tensor, spread: float, seed: int = 0) -> torch.Tensor:
    """Inputs (N, 3, 64 + 3) around one direction for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(count, 64, generator=generator))
    noise = spread * torch.randn(len(classes), 3, 64, generator=generator)
    points = torch.nn.functional.normalize(centres[classes][:, None] + noise, dim=-1)
    return torch.cat([points, torch.zeros(len(classes), 3, OWN)], -1)


# ---- heads


def test_heads_read_the_nets_and_the_nets_alone() -> None:
    with torch.no_grad():
        inputs, embedding = chain().nets(aligned().faces[:3])
    assert inputs.shape == (3, default.EMBEDDING + OWN)
    assert torch.allclose(inputs[:, : default.EMBEDDING].norm(dim=1), torch.ones(3))
    assert torch.allclose(inputs[:, : default.EMBEDDING] * embedding.norm(dim=1, keepdim=True), embedding)
    logits = chain().heads(inputs)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {
        a.name: (3, len(a)) for a in ATTRIBUTES
    }
    assert (chain().heads.years(inputs) >= 0).all()


def test_head_inputs_hold_what_the_net_says_itself() -> None:
    gender, age = torch.tensor([[1.0, 4.0]]), torch.tensor([[5.0, -5.0]])
    found = head_inputs(torch.tensor([[3.0, 4.0]]), gender, age, torch.tensor([25.0]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8, 0.3, -1.0, 0.25]]))


def test_the_judges_learnt_from_different_people() -> None:
    assert len(set(fit_judges.HALVES.values())) == len(fit_judges.HALVES) == 2
    heads = [Heads(WEIGHTS_FOLDER / fit_judges.FILES[j], fit_judges.WIDTHS[j]) for j in fit_judges.FILES]
    assert all("rendered people" in head.notes["source"] for head in heads)


def test_heads_of_another_net_are_refused() -> None:
    path = WEIGHTS_FOLDER / default.FILES["heads"]
    with pytest.raises(FairAdapterError, match=r"gender\.weight.*shape"):
        Heads(path, evaluator.EMBEDDING)


# ---- labels


def test_ages_near_the_border_have_no_class() -> None:
    table = [
        ("36.9", "female", "asian"),
        ("37.0", "male", "black"),
        ("43.0", "male", ""),
        ("43.1", "male", "wmelh"),
    ]
    rows = [dict(zip(("age", "gender", "race"), line)) for line in table]
    people = faces(rows, torch.zeros(4, 1, 5))
    assert people_classes(people, AGE).tolist() == [0, -1, -1, 1]
    assert people_classes(people, GENDER).tolist() == [0, 1, 1, 1]
    assert people_classes(people, RACE).tolist() == [2, 1, -1, 0]


def test_what_a_net_says_itself_counts_where_it_is_sure() -> None:
    inputs = torch.tensor([[0.0, 0.5, 0, 0.30], [0.0, -0.5, 0, 0.40], [0.0, 0.05, 0, 0.60]])
    assert own_classes(inputs, GENDER).tolist() == [1, 0, -1]
    assert own_classes(inputs, AGE).tolist() == [0, -1, 1]
    assert own_classes(inputs, RACE).tolist() == [-1, -1, -1]


def test_copies_of_a_picture_are_one_group() -> None:
    noise = 0.02 * torch.randn(aligned().faces[:6].shape, generator=torch.Generator().manual_seed(0))
    copies = (0.9 * aligned().faces[:6] + noise).clamp(0, 1)
    hashes = judge_faces.difference_hash(torch.cat([aligned().faces[:6], copies]))
    assert judge_faces.picture_groups(hashes) == [0, 1, 2, 3, 4, 5] * 2


def test_each_picture_counts_once_and_contradictions_not_at_all() -> None:
    texts = ["african", "", "african male", "typical adult irish", "asian", "persian", "native american"]
    hashes = torch.rand(7, 256, generator=torch.Generator().manual_seed(0)) < 0.5
    hashes[2], hashes[5] = hashes[0], hashes[4]
    portraits = faces([{"retrieval_text": t} for t in texts], torch.zeros(7, 1, 5), hashes)
    assert portrait_classes(portraits, RACE).tolist() == [1, -1, -1, 0, -1, -1, -1]


# ---- fit


def test_a_head_separates_what_is_separable_and_the_same_way_again() -> None:
    classes = torch.arange(90) % 3
    data = Domain(faces([{}] * 90, clouds(3, classes, 0.1)), classes)
    head = fit_head([data.of("default", True)], 3, 1e-3)
    share, right, count = accuracy(data.of("default", False)[0] @ head[0].T + head[1], classes, balanced=True)
    assert (share, right, count) == (1.0, 90, 90)
    again = fit_head([data.of("default", True)], 3, 1e-3)
    assert torch.equal(head[0], again[0]) and torch.equal(head[1], again[1])


def test_each_kind_and_class_weighs_the_same() -> None:
    """Ten thousand pictures of one kind don't drown two of another, which speak along another axis."""
    many = (torch.tensor([[1.0, 0.0, 0, 0, 0]] * 5000 + [[-1.0, 0.0, 0, 0, 0]] * 5000),
            torch.tensor([0] * 5000 + [1] * 5000))  # fmt: skip
    few = (torch.tensor([[0.0, 1.0, 0, 0, 0], [0.0, -1.0, 0, 0, 0]]), torch.tensor([1, 0]))
    weight, _ = fit_head([many, few], 2, 1e-2)
    assert float(weight[0, 0]) == pytest.approx(-float(weight[0, 1]), rel=1e-3)


def test_the_decay_is_chosen_on_faces_left_out() -> None:
    """Noise is learnt by heart without decay; where there is structure, little decay is better."""
    classes = torch.arange(120) % 3
    noise = torch.nn.functional.normalize(
        torch.randn(120, 3, 67, generator=torch.Generator().manual_seed(3)), dim=-1
    )
    chosen = []
    for inputs in (noise, clouds(3, classes, 0.05)):
        people = faces([{}] * 120, inputs)
        learnt = torch.arange(120) < 60
        domain = Domain(people, classes)
        fitted = fit_attribute("default", domain.where(learnt), domain.where(~learnt), domain, domain)
        chosen.append(fitted.decay)
    assert chosen[0] == max(chosen) > chosen[1]


def test_years_are_a_regression_in_which_kinds_weigh_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 8, generator=generator)
    years = inputs @ torch.arange(8.0) + 40
    weight, bias = fit_years([(inputs, years), (inputs[:10], years[:10])], decay=1e-9)
    assert torch.allclose(inputs @ weight[0] + bias, years, atol=1e-2)


# ---- reading


def people_folder(folder: Path, count: int) -> Path:
    """Fixture faces as a renderer's folder: RGBA pictures with labels."""
    folder.mkdir(parents=True)
    rows = []
    for i, row in enumerate(csv.DictReader((FOLDER / "labels.csv").open(encoding="utf-8"))):
        if i == count:
            break
        picture = (images()[i].permute(1, 2, 0) * 255).round().byte().numpy()
        alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
        alpha[:20] = 0
        Image.fromarray(np.concatenate([picture, alpha], 2)).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "gender": row["gender"], "race": row["race"], "age": "30"})
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def test_readings_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = people_folder(tmp_path / "people", 3)
    nets, kept = judge_faces.JudgeNets(), tmp_path / "work" / "people.npz"
    pictures = judge_faces.table_rows(table)
    first = judge_faces.read_faces(pictures[:2], nets, kept)
    assert first.inputs["default"].shape == (2, 3, default.EMBEDDING + OWN)
    assert first.inputs["evaluator"].shape == (2, 3, evaluator.EMBEDDING + OWN)
    calls = []
    read = nets.read
    monkeypatch.setattr(nets, "read", lambda *a: calls.append(1) or read(*a))
    whole = judge_faces.read_faces(pictures, nets, kept)
    assert len(calls) == 1 and torch.equal(whole.inputs["default"][:2], first.inputs["default"])
    assert torch.equal(judge_faces.read_faces(pictures, nets, tmp_path / "anew.npz").inputs["default"],
                       whole.inputs["default"])  # fmt: skip
    kept.write_bytes(kept.read_bytes()[:-200])
    with pytest.raises(FairAdapterError, match=r"people\.npz.*delete it"):
        judge_faces.read_faces(pictures, nets, kept)


def test_transparent_pictures_stand_before_a_drawn_backdrop(tmp_path: Path) -> None:
    people_folder(tmp_path / "people", 1)
    rng = np.random.default_rng(0)
    pair = [np.array(judge_faces.on_backdrop(tmp_path / "people/0.png", rng)) for _ in range(2)]
    assert not np.array_equal(pair[0][:20], pair[1][:20]) and np.array_equal(pair[0][20:], pair[1][20:])


def test_harder_forms_stay_pictures_and_differ() -> None:
    face, rng = aligned().faces[:1], np.random.default_rng(0)
    forms = [judge_faces.harder(face, rng) for _ in range(4)]
    for form in forms:
        assert form.shape == face.shape and form.min() >= 0 and form.max() <= 1
        assert 0.01 < min((form - f).abs().mean() for f in (face, face.flip(-1))) < 0.2
    assert not torch.equal(forms[0], forms[1])


def test_bad_folders_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_judges.main([str(tmp_path / "none"), str(tmp_path), "--work", str(tmp_path / "w")]) == 2
    (tmp_path / "labels.csv").write_text("name\nx\n")
    assert fit_judges.main([str(tmp_path), str(tmp_path), "--work", str(tmp_path / "w")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") and "labels.csv" in line for line in lines)
    with pytest.raises(FairAdapterError, match="PNG pictures, found none"):
        judge_faces.folder_rows(tmp_path)
