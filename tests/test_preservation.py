"""Image semantics with dynamic weights, face realism, pixel clamp."""

import pytest
import torch

from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.preservation import (
    FaceBank,
    OriginalFaces,
    SemanticWeights,
    clamp_pixels,
    damp_faces,
    face_realism_loss,
    image_semantics_loss,
    realism_targets,
    region_weights,
)

NO_FACE = (float("nan"),) * 4


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


from fair_adapter.trainer.instruments.encoders import ForeignEncoder


def test_three_weights_of_the_paper():
    labels = {"gender": torch.tensor([0, 1, -1, -1])}
    original = {"gender": torch.tensor([0, 0, 0, -1])}
    found = region_weights(labels, original, torch.ones(4).bool())
    # kept; changed; face without a certain target; no class before or after
    torch.testing.assert_close(found.image, torch.tensor([8.0, 1.6, 1.6, 8.0]))
    torch.testing.assert_close(found.image * found.face, torch.tensor([8.0, 0.32, 0.32, 8.0]))


def test_several_attributes_take_the_smallest_factor():
    weights = SemanticWeights(6.0, {"gender": 0.2, "race": 0.6}, {"gender": 0.2, "race": 0.3})
    labels = {"gender": torch.tensor([0, 1, 0, 1]), "race": torch.tensor([0, 0, 1, 1])}
    original = {"gender": torch.zeros(4).long(), "race": torch.zeros(4).long()}
    found = region_weights(labels, original, torch.ones(4).bool(), weights)
    torch.testing.assert_close(found.image, 6 * torch.tensor([1.0, 0.2, 0.6, 0.2]))
    torch.testing.assert_close(found.face, torch.tensor([1.0, 0.2, 0.3, 0.2]))


def test_without_a_face_nothing_changes_class():
    found = region_weights(
        {"gender": torch.tensor([-1])}, {"gender": torch.tensor([1])}, torch.tensor([False])
    )
    assert found.image.tolist() == [8.0] and found.face.tolist() == [1.0]
    with pytest.raises(FairAdapterError, match="no original classes for 'gender'"):
        region_weights({"gender": torch.tensor([0])}, {}, torch.tensor([True]))
    for wrong in ({"unchanged": -1.0}, {"changed": {"gender": 1.5}}, {"changed_face": {"gender": -0.1}}):
        with pytest.raises(FairAdapterError, match="factors in"):
            SemanticWeights(**wrong)


def gradient_scale(box, original, factor=0.2, size=(8, 10)):
    """What the gradient of each pixel is multiplied by, (H, W)."""
    images = torch.rand(1, 3, *size, requires_grad=True)
    damped = damp_faces(images, torch.tensor([box]), torch.tensor([original]), torch.tensor([factor]))
    assert torch.equal(damped, images)
    damped.sum().backward()
    assert torch.equal(images.grad[0, 0], images.grad[0, 2])
    return images.grad[0, 0]


def test_gradient_is_damped_where_the_faces_overlap():
    scale = gradient_scale((1.0, 2.0, 6.0, 7.0), (3.0, 0.0, 9.0, 5.0))
    expected = torch.ones(8, 10)
    expected[2:5, 3:6] = 0.2
    assert torch.equal(scale, expected)


@pytest.mark.parametrize("missing", [NO_FACE, (-1.0, -1.0, -1.0, -1.0), (0.0, 0.0, 0.0, 0.0)])
def test_an_original_without_a_face_damps_nothing(missing):
    """The release lets the -1 of a missing box run to the border of the image."""
    assert (gradient_scale((1.0, 1.0, 7.0, 7.0), missing) == 1).all()
    assert (gradient_scale(missing, (1.0, 1.0, 7.0, 7.0)) == 1).all()


def test_boxes_apart_and_beyond_the_border():
    assert (gradient_scale((0.0, 0.0, 3.0, 8.0), (5.0, 0.0, 9.0, 8.0)) == 1).all()
    scale = gradient_scale((-5.0, -5.0, 4.0, 4.0), (-9.0, 2.0, 30.0, 30.0))
    assert (scale[2:4, :4] - 0.2).abs().max() < 1e-7 and int((scale < 1).sum()) == 8


def test_each_image_has_its_own_factor_and_box():
    images = torch.rand(3, 3, 4, 4, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0], NO_FACE])
    damp_faces(images, boxes, boxes, torch.tensor([0.5, 1.0, 0.1])).sum().backward()
    assert images.grad[0, 0].sum() == 14 and images.grad[1].eq(1).all() and images.grad[2].eq(1).all()


def test_clamp_passes_what_leads_back_and_stops_what_leads_away():
    values = torch.tensor([-0.5, -0.5, 0.3, 0.3, 1.5, 1.5], requires_grad=True)
    downhill = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    clamped = clamp_pixels(values)
    assert clamped.tolist() == values.detach().clamp(0, 1).tolist()
    (clamped * downhill).sum().backward()
    assert values.grad.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0, 0.0]


def test_descent_with_the_clamp_reaches_a_target_that_a_plain_clamp_cannot():
    values = torch.tensor([1.2, -0.3])
    for _ in range(60):
        values.requires_grad_(True)
        loss = (clamp_pixels(values) - torch.tensor([0.5, 0.5])).square().sum()
        values = (values - 0.1 * torch.autograd.grad(loss, values)[0]).detach()
    torch.testing.assert_close(values, torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)


def test_semantics_loss_in_closed_form():
    same, opposite = unit([1, 0], [0, 1]), unit([0, 1], [0, -1])
    assert image_semantics_loss([same], [same]).tolist() == [0.0, 0.0]
    assert image_semantics_loss([same, same], [same, opposite]).tolist() == [1.0, 2.0]
    features = unit([1, 1]).half().requires_grad_(True)
    loss = image_semantics_loss([features], [unit([1, 0])])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1 - 2**-0.5, abs=1e-3)
    loss.sum().backward()
    assert features.grad.abs().max() > 0
    with pytest.raises(FairAdapterError, match="1 features for 2 references"):
        image_semantics_loss([same], [same, same])


BANK = FaceBank(unit([1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 1]), {"gender": torch.tensor([0, 0, 1, -1])})


def test_small_gradients_survive_a_float16_encoder():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
    images, gradients = torch.rand(2, 3, 8, 8), {}
    for dtype in (torch.float32, torch.float16):
        encoder = ForeignEncoder("any", network.to(dtype), 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        pictures = images.clone().requires_grad_()
        (1e-7 * encoder(pictures)[:, 0].sum()).backward()  # smaller than what float16 tells from zero
        gradients[dtype] = pictures.grad
    assert gradients[torch.float32].abs().max() < 6e-8
    close = torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients.values()), dim=0)
    assert close > 0.999


def test_neighbour_is_of_the_target_class():
    faces = unit([1, 0.05, 0], [1, 0.05, 0], [1, 0.05, 0], [0, 0, 1])
    labels = {
        "gender": torch.tensor([0, 1, -1, -1]),
        "race": torch.tensor([2, 2, 2, 2]),
    }  # race: not in the bank
    assert BANK.nearest(faces, labels).tolist() == [0, 2, 0, 3]


def test_bank_that_cannot_serve_the_target_is_refused_at_once():
    BANK.check(TargetDistribution.parse("gender=50/50;race=equal"))
    only_female = FaceBank(unit([1, 0]), {"gender": torch.tensor([0])})
    only_female.check(TargetDistribution.parse("gender=100/0"))
    with pytest.raises(FairAdapterError, match="none of its 1 faces is male; add such faces"):
        only_female.check(TargetDistribution.parse("gender=50/50"))
    with pytest.raises(FairAdapterError, match="no face of classes"):
        only_female.nearest(unit([1, 0]), {"gender": torch.tensor([1])})
    with pytest.raises(FairAdapterError, match="face bank: features"):
        FaceBank(unit([1, 0]), {"gender": torch.tensor([0, 1])})
    with pytest.raises(FairAdapterError, match="face bank: features"):
        FaceBank(torch.zeros(0, 4))


def original_faces(labels, certainty):
    features = unit(*[[0, 0.1, 1]] * len(labels))
    return OriginalFaces(features, {"gender": torch.tensor(labels)}, {"gender": torch.tensor(certainty)})


def test_own_face_where_the_class_stays_and_is_certain():
    #             kept   unsure  changes no target  no face  no face before
    labels = torch.tensor([0, 0, 1, -1, 0, 1])
    original = original_faces([0, 0, 0, 0, 0, -1], [0.95, 0.85, 0.99, 0.99, 0.99, 0.0])
    has_face = torch.tensor([True, True, True, True, False, True])
    faces = unit(*[[1, 0.05, 0]] * 6)
    targets, mask = realism_targets(faces, has_face, {"gender": labels}, original, BANK)
    assert torch.equal(mask, has_face)
    own = original.features[0]
    expected = torch.stack([own, BANK.features[0], BANK.features[2], BANK.features[0]])
    torch.testing.assert_close(targets[:4], expected)
    torch.testing.assert_close(targets[5], BANK.features[2])
    targets, mask = realism_targets(faces, has_face, {"gender": labels}, original, None)
    assert mask.tolist() == [True] + [False] * 5
    torch.testing.assert_close(targets[0], own)


def test_every_attribute_must_stay_for_the_own_face():
    original = OriginalFaces(
        unit([0, 0, 1]),
        {"gender": torch.tensor([0]), "race": torch.tensor([1])},
        {"gender": torch.tensor([0.99]), "race": torch.tensor([0.99])},
    )
    has_face, faces = torch.tensor([True]), unit([1, 0, 0])
    for race, kept in ((1, True), (2, False)):
        labels = {"gender": torch.tensor([0]), "race": torch.tensor([race])}
        _, mask = realism_targets(faces, has_face, labels, original, None)
        assert mask.tolist() == [kept]


def test_realism_loss_ignores_images_without_a_target():
    features = unit([1, 0], [0, 1], [1, 1])
    features[1] = float("nan")
    features.requires_grad_(True)
    mask = torch.tensor([True, False, True])
    loss = face_realism_loss(features, unit([1, 0], [1, 0], [1, 0]), mask)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 1 - 2**-0.5]))
    loss.sum().backward()
    assert torch.isfinite(features.grad).all() and not features.grad[1].any() and features.grad[2].any()
    assert face_realism_loss(features, features, torch.zeros(3).bool()).tolist() == [0, 0, 0]
