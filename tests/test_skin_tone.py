"""The ruler for skin tone: angles of painted faces, gradients, doubt, and its place beside others."""

import numpy as np
import pytest
import torch
from PIL import Image

from fair_adapter.a1111_extension.options import FairOptions
from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.attributes import SKIN_TONE, TONE_BOUNDS, TargetDistribution
from fair_adapter.shared.bars import CERTAIN, draw_faces, read_bars
from fair_adapter.shared.classifiers import load_classifier
from fair_adapter.shared.classifiers.skin_tone import (
    POWER,
    USUAL,
    SkinTone,
    lab,
    linear,
    load,
    soft_classes,
)
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import Face
from fair_adapter.shared.statistics import FairnessStatistics
from fair_adapter.tests.fixture_faces import aligned
from fair_adapter.trainer.instruments.observer import load_observer
from fair_adapter.trainer.portrait.rendering.skin import rgb_to_lab, tone_rgb

ANGLES = (-55.0, -10.0, 18.0, 34.0, 48.0, 60.0)  # one in each class, dark first


def painted(angles: tuple[float, ...] = ANGLES, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    """Faces of one skin colour each, float32 (N, 3, 256, 256), with a little noise; the exposure is usual."""
    generator = torch.Generator().manual_seed(seed)
    faces = []
    for angle in angles:
        light = torch.tensor(tone_rgb(angle), dtype=torch.float64)
        luminance = float(light @ torch.tensor([0.2126729, 0.7151522, 0.0721750], dtype=torch.float64))
        light = light * (luminance / USUAL) ** (POWER / (1 - POWER))  # what normalising takes back
        values = torch.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
        plain = values.clamp(0, 1).float().view(3, 1, 1).expand(3, 256, 256)
        faces.append((plain + noise * torch.randn(3, 256, 256, generator=generator)).clamp(0, 1))
    return torch.stack(faces)


def test_flat_skin_has_the_angle_that_it_was_painted_with() -> None:
    reading = load().read(painted(noise=0.0))
    assert reading.angle.tolist() == pytest.approx(ANGLES, abs=0.5)
    assert reading.doubt.max() < 1


def test_colours_are_those_of_the_renderer() -> None:
    rgb = np.random.default_rng(0).random((50, 3))
    ours = lab(torch.from_numpy(rgb.T[None].copy()))[0].T.numpy()
    assert np.allclose(ours, rgb_to_lab(rgb), atol=0.02)
    assert linear(torch.tensor([0.0, 0.04, 0.5, 1.0])).tolist() == pytest.approx(
        [0, 0.04 / 12.92, 0.21404, 1], abs=1e-4
    )


def test_every_class_is_read_with_confidence() -> None:
    rows = load()(painted())["skin_tone"].softmax(1)
    assert rows.argmax(1).tolist() == [5, 4, 3, 2, 1, 0]
    assert rows.amax(1).min() > CERTAIN


def test_soft_classes_are_shares_of_a_soft_edge() -> None:
    angles = torch.linspace(-90, 90, 400, dtype=torch.float64)
    logits = soft_classes(angles, torch.zeros_like(angles))
    assert torch.allclose(logits.exp().sum(1), torch.ones_like(angles))  # without doubt they are log shares
    sharp = (angles[:, None] <= torch.tensor(TONE_BOUNDS, dtype=torch.float64)).sum(1)
    far = (angles[:, None] - torch.tensor(TONE_BOUNDS, dtype=torch.float64)).abs().amin(1) > 1
    assert torch.equal(logits.argmax(1)[far], sharp[far])
    at_bounds = soft_classes(torch.tensor(TONE_BOUNDS), torch.zeros(5)).softmax(1)
    assert at_bounds.amax(1).tolist() == pytest.approx([0.5] * 5, abs=0.01)


def test_doubt_lowers_the_confidence_and_changes_no_class() -> None:
    angles = torch.linspace(-80, 70, 300)
    sure = soft_classes(angles, torch.zeros_like(angles))
    for doubt in (1.0, 1.5, 7.0):
        unsure = soft_classes(angles, torch.full_like(angles, doubt))
        assert torch.equal(unsure.argmax(1), sure.argmax(1))
        assert unsure.softmax(1).amax() < CERTAIN
    assert soft_classes(angles, torch.full_like(angles, 0.5)).softmax(1).amax() > 0.99


def hard_light(faces: torch.Tensor) -> torch.Tensor:
    faces = faces.clone()
    faces[..., 128:] *= 0.35
    return faces


def coloured(faces: torch.Tensor) -> torch.Tensor:
    return (faces * torch.tensor([0.4, 0.8, 1.0]).view(3, 1, 1)).clamp(0, 1)


def covered(faces: torch.Tensor) -> torch.Tensor:
    faces = faces.clone()
    faces[:, :, :110] = 0.02  # a fringe
    faces[:, :, 110:, :110] = 0.02
    return faces


@pytest.mark.parametrize("spoil", [hard_light, coloured, covered])
def test_what_spoils_the_measurement_is_told(spoil) -> None:
    faces = painted((18.0, 34.0, 48.0))
    net = load()
    assert net.read(faces).doubt.max() < 0.9
    spoiled = spoil(faces)
    assert net.read(spoiled).doubt.min() >= 1
    (bars,) = read_bars(net(spoiled[:1]), net.attributes, [Face((0, 0, 9, 9), ((0, 0),) * 5, 1.0)])
    assert not bars.bars[0].certain


def test_the_backdrop_is_not_read() -> None:
    net, faces = load(), aligned().faces[:4]
    other = faces.clone()
    other[..., :40] = torch.tensor([0.1, 0.9, 0.2]).view(3, 1, 1)
    assert torch.equal(net(faces)["skin_tone"], net(other)["skin_tone"])


def test_a_step_along_the_gradient_does_what_it_says() -> None:
    net = SkinTone()
    faces = painted((34.0, -10.0)).double().requires_grad_()
    angle = net.read(faces).angle
    (gradient,) = torch.autograd.grad(angle.sum(), faces)
    assert (gradient != 0).flatten(1).sum(1).min() > 500  # not one pixel's alone
    step = 1e-5 / gradient.abs().max() * gradient
    told = (gradient * step).sum()
    done = net.read((faces + step).detach()).angle.sum() - angle.sum()
    assert done.item() == pytest.approx(told.item(), rel=0.02)


def test_training_towards_a_far_class_moves_the_skin_there() -> None:
    net = SkinTone()
    darker = torch.zeros(1, requires_grad=True)
    faces = painted((60.0,))
    optimiser = torch.optim.Adam([darker], lr=0.03)
    for _ in range(60):
        logits = net(faces * torch.exp(-darker))["skin_tone"]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([4]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert net(faces * torch.exp(-darker))["skin_tone"].argmax(1).item() == 4


def test_it_reads_beside_another_classifier() -> None:
    both, alone = load_classifier("default+skin_tone"), load_classifier()
    assert [a.name for a in both.attributes] == ["gender", "race", "age", "skin_tone"]
    assert both.identity == f"{alone.identity}+skin_tone:1"
    faces = aligned().faces[:3]
    logits, years = both.with_years(faces)
    expected, ages = alone.with_years(faces)
    assert ages is not None and years is not None and torch.equal(years, ages)
    for name, rows in expected.items():
        assert torch.equal(logits[name], rows)
    assert torch.equal(logits["skin_tone"], load()(faces)["skin_tone"])
    judge = load_classifier("evaluator+skin_tone")
    assert judge(faces)["skin_tone"].shape == (3, 6)


def test_it_is_off_unless_it_is_asked_for(tmp_path) -> None:
    assert "skin_tone" not in [a.name for a in load_classifier().attributes]
    chosen = FairOptions()
    service = FairService([], tmp_path, options=lambda: chosen)
    assert [a.name for a in service.reader().attributes] == ["gender", "race", "age"]
    chosen = FairOptions(skin_tone=True)
    assert [a.name for a in service.reader().attributes] == ["gender", "race", "age", "skin_tone"]


def test_wrong_names_say_what_is_expected(tmp_path) -> None:
    with pytest.raises(FairAdapterError, match="skin_tone in more than one; leave one"):
        load_classifier("skin_tone+skin_tone")
    with pytest.raises(FairAdapterError, match="expected one of default"):
        load_classifier("+skin_tone")
    with pytest.raises(FairAdapterError, match="it has no weights"):
        load_classifier(f"skin_tone:{tmp_path}")
    with pytest.raises(FairAdapterError, match="expected floating point"):
        load().read(torch.zeros(1, 3, 64, 64))


def test_bars_targets_and_statistics_know_it() -> None:
    target = TargetDistribution.parse("skin_tone=equal;gender=50/50")
    assert target.attribute("skin_tone") == SKIN_TONE
    assert TargetDistribution.parse(target.to_text()) == target
    face = Face((60, 60, 200, 200), ((0, 0),) * 5, 1.0)
    net = load()
    bars = read_bars(net(painted((18.0,))), net.attributes, [face])
    drawn = np.asarray(draw_faces(Image.new("RGB", (320, 320)), bars))
    assert (drawn == np.array(SKIN_TONE.looks[3].colour)).all(2).sum() > 100
    statistics = FairnessStatistics(net.attributes)
    statistics.add([bars])
    assert statistics.counts("skin_tone")["tan"] == 1


def test_training_and_evaluation_observe_it() -> None:
    observer = load_observer("default+skin_tone", "fixed")
    target = observer.target("skin_tone=equal")
    logits, embedding = observer.read(aligned().faces[:2])
    assert logits["skin_tone"].shape == (2, len(target.attributes[0])) and embedding.shape == (2, 128)


def test_black_frames_and_faces_without_skin_are_finite() -> None:
    for value in (0.0, 1.0):
        faces = torch.full((1, 3, 256, 256), value, requires_grad=True)
        logits = SkinTone()(faces)["skin_tone"]
        logits.sum().backward()
        assert logits.isfinite().all() and faces.grad is not None and faces.grad.isfinite().all()
        assert logits.softmax(1).amax() < CERTAIN
