"""Detection and alignment: the 36 fixture faces, odd images, and what the maths promises."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import Face, FaceDetector, align, align_all, align_largest, largest, window
from fair_adapter.shared.faces.alignment import CHIP_02, similarity, template
from fair_adapter.shared.faces.cascade_nets import FILE, load_nets
from fair_adapter.shared.faces.detection import stack_points
from fair_adapter.shared.faces.mtcnn import crop, integral, normalised, suppress, suppress_nested
from fair_adapter.shared.faces.windows import detection_size
from fair_adapter.shared.images import load_image, to_bytes, to_pil
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.tests.fixture_faces import aligned, chain, detector, images

POINTS = ((30.0, 40.0), (70.0, 42.0), (50.0, 60.0), (34.0, 80.0), (66.0, 81.0))


def turned(pictures: torch.Tensor, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    grid = F.affine_grid(matrix.expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def assert_same_faces(found: list[Face], expected: list[Face], tolerance: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert np.allclose(a.box, b.box, atol=tolerance)
        assert np.allclose(a.points, b.points, atol=tolerance)
        assert a.probability == pytest.approx(b.probability, abs=1e-4)


# ---- detection


def test_every_fixture_face_is_found_once_as_the_largest() -> None:
    assert all(face is not None for face in aligned().found)
    for face in aligned().found:
        left, right, nose, mouth_left, mouth_right = face.points
        assert left[0] < right[0] and mouth_left[0] < mouth_right[0]
        assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
        assert face.probability >= 0.9
        assert face.box[0] < nose[0] < face.box[2] and face.box[1] < nose[1] < face.box[3]


def test_cascade_agrees_with_the_package_it_replaces() -> None:
    from facenet_pytorch import MTCNN

    pictures = images()[:6]
    levels = to_bytes(pictures).permute(0, 2, 3, 1).numpy()
    reference = MTCNN(keep_all=True, min_face_size=16, post_process=False).detect(levels, landmarks=True)
    for faces, boxes, probabilities, points in zip(detector().detect(pictures), *reference):
        kept = [
            Face(tuple(box), tuple(map(tuple, marks)), p)
            for box, p, marks in zip(boxes, probabilities, points)
            if p >= 0.9
        ]
        kept.sort(key=lambda f: -f.area(256, 256))
        assert_same_faces(faces, kept, 0.01)


def package_nets() -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The package's own nets with its own weights."""
    from facenet_pytorch.models.mtcnn import ONet, PNet, RNet

    return PNet().eval(), RNet().eval(), ONet().eval()


@torch.no_grad()
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_nets_are_the_packages_to_the_bit(order: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    for ours, theirs, size in zip(load_nets(), package_nets(), ((90, 61), (24, 24), (48, 48))):
        crops = normalised(torch.rand(7, 3, *size, generator=generator) * 255).contiguous(memory_format=order)
        found, expected = ours(crops), theirs(crops)
        assert len(found) == len(expected) > 1
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_boxes_are_those_of_the_packages_nets_to_the_bit() -> None:
    theirs = FaceDetector()
    cascade = theirs.cascade
    cascade.propose_net, cascade.refine_net, cascade.output_net = package_nets()
    crowd = torch.cat([torch.cat(list(images()[i * 4 : i * 4 + 4]), 2) for i in range(3)], 1)[None]
    for pictures in (images(), crowd, turned(images()[:8], 20)):
        found = detector().detect(pictures)
        assert any(found) and found == theirs.detect(pictures)


def test_batch_is_the_same_as_one_by_one() -> None:
    pictures = images()[:5]
    for together, alone in zip(
        detector().detect(pictures), (detector().detect(p[None])[0] for p in pictures)
    ):
        assert_same_faces(together, alone, 0.01)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 400), (300, 2), (11, 12), (12, 12)])
def test_tiny_and_thin_images_have_no_face(size: tuple[int, int]) -> None:
    noise = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert detector().detect(noise) == [[], []]


def test_faceless_images_have_no_face() -> None:
    blank = torch.full((1, 3, 90, 160), 0.5)
    noise = torch.rand(1, 3, 90, 160, generator=torch.Generator().manual_seed(0))
    broken = torch.full((1, 3, 90, 160), float("nan"))
    assert detector().detect(torch.cat([blank, noise, broken])) == [[], [], []]
    assert detector().detect(torch.zeros(0, 3, 64, 64)) == []
    result = align_largest(blank, detector())
    assert result.faces.shape == (0, 3, 256, 256) and result.found == (None,) and len(result.owners) == 0


def test_small_faces_are_enlarged_and_huge_images_reduced() -> None:
    small = F.interpolate(images()[:6], 48, mode="bilinear", antialias=True)
    assert all(detector().detect(small))
    huge = F.interpolate(images()[:1], 3000, mode="bilinear")
    face, expected = detector().detect(huge)[0][0], aligned().found[0]
    assert np.allclose(np.array(face.points) * 256 / 3000, expected.points, atol=2.0)
    assert detection_size(4000, 2000) == (1024, 512)
    assert detection_size(64, 64) == (128, 128)
    assert detection_size(8, 8) == (32, 32)
    assert detection_size(1, 5000)[1] == 1024


def test_every_face_of_a_crowd_is_found_and_aligned() -> None:
    crowd = torch.cat([torch.cat(list(images()[i * 4 : i * 4 + 4]), 2) for i in range(3)], 1)[None]
    faces = detector().detect(crowd)[0]
    assert len(faces) == 12
    areas = [face.area(*crowd.shape[2:]) for face in faces]
    assert areas == sorted(areas, reverse=True)
    assert align_all(crowd, faces).shape == (12, 3, 256, 256)


def test_turned_faces_are_the_same_persons() -> None:
    result = align_largest(turned(images()[:8], 20), detector())
    assert len(result.faces) == 8
    with torch.no_grad():
        distance = (chain().embed(result.faces) - chain().embed(aligned().faces[:8])).norm(dim=1)
    assert distance.max() < 0.5  # 0.6 is where dlib tells persons apart


def test_photo_turned_by_its_camera_is_read_upright(tmp_path) -> None:
    picture = to_pil(images()[0]).rotate(90)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert_same_faces(
        detector().detect(load_image(tmp_path / "turned.png")[None])[0],
        detector().detect(images()[:1])[0],
        0.01,
    )


def test_grey_images_have_the_same_face() -> None:
    grey = images()[:3].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for face, expected in zip(align_largest(grey, detector()).found, aligned().found):
        assert np.allclose(face.points, expected.points, atol=6)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_wrong_images_are_an_error(bad: torch.Tensor) -> None:
    with pytest.raises(FairAdapterError, match=r"expected floating point \(N, 3, H, W\)"):
        detector().detect(bad)


def test_missing_damaged_or_foreign_weights_name_the_file(tmp_path: Path) -> None:
    broken, whole = tmp_path / "mtcnn.safetensors", FILE.read_bytes()
    foreign = (WEIGHTS_FOLDER / "gender.safetensors").read_bytes()
    for content in (None, b"", whole[: len(whole) // 2], foreign):
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(FairAdapterError) as error:
            load_nets(broken)
        message = str(error.value)
        assert message.startswith(f"{broken}: expected") and "git checkout" in message
        assert "\n" not in message


def test_largest_face_counts_only_what_is_inside_the_image() -> None:
    outside = Face((-90.0, 0.0, 10.0, 100.0), POINTS, 0.99)  # 10 x 100 inside
    inside = Face((20.0, 20.0, 60.0, 60.0), POINTS, 0.95)  # 40 x 40
    assert outside.area(100, 100) == 1000 and inside.area(100, 100) == 1600
    assert largest([outside, inside], 100, 100) is inside
    surer = Face((50.0, 50.0, 90.0, 90.0), POINTS, 0.96)
    assert largest([inside, surer], 100, 100) is surer
    assert largest([], 100, 100) is None


@given(
    st.integers(0, 10),
    st.integers(0, 12),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 5, 24]),
)
def test_crops_are_area_means(x: int, y: int, width: int, height: int, size: int) -> None:
    levels = torch.randint(0, 256, (2, 3, 32, 30), generator=torch.Generator().manual_seed(x)).to(torch.uint8)
    low, high = torch.tensor([[x, y]]), torch.tensor([[min(x + width, 30), min(y + height, 32)]])
    found = crop(integral(levels), torch.tensor([1]), low, high, size)
    cut = levels[1:, :, y : int(high[0, 1]), x : int(high[0, 0])].double()
    assert torch.allclose(found.double(), F.adaptive_avg_pool2d(cut, size), atol=1e-4)


def test_suppression_stays_within_an_image() -> None:
    boxes = torch.tensor([[-20.0, 0, 20, 40], [-20, 0, 20, 40], [-19, 0, 21, 40], [0, 10, 10, 20]])
    score, owner = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 1, 0])
    assert sorted(suppress(boxes, score, owner, 0.5).tolist()) == [0, 1, 3]
    assert sorted(suppress_nested(boxes, score, owner, 0.7).tolist()) == [0, 1]
    assert suppress(boxes[:0], score[:0], owner[:0], 0.5).tolist() == []


# ---- alignment


def test_canonical_template_is_the_stated_one() -> None:
    expected = (torch.tensor(CHIP_02, dtype=torch.float64) * 1.4 + 0.3) / 2.0
    assert torch.allclose(template(), expected)
    assert torch.allclose(template(0.2), torch.tensor(CHIP_02, dtype=torch.float64))


@given(
    st.floats(0.2, 5),
    st.floats(-3, 3),
    st.floats(-50, 50),
    st.floats(-50, 50),
)
def test_similarity_recovers_the_transform(scale: float, angle: float, dx: float, dy: float) -> None:
    points = torch.tensor([POINTS], dtype=torch.float64)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    rotation = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    shift = torch.tensor([dx, dy], dtype=torch.float64)
    found = similarity(points, points @ rotation.T + shift)[0]
    assert torch.allclose(found, torch.cat([rotation, shift[:, None]], 1), atol=1e-9)


def test_coinciding_points_stay_finite() -> None:
    face = align(
        torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)), torch.full((1, 5, 2), 7.0)
    )
    assert face.isfinite().all()


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.3, 9.0])
def test_points_land_on_the_template(scale: float) -> None:
    """A picture whose red is x and whose green is y shows where every pixel of the frame came from."""
    side = round(160 * scale)
    x = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    picture = torch.stack([x.expand(side, side), x[:, None].expand(side, side), torch.zeros(side, side)])[
        None
    ]
    points = torch.tensor([POINTS], dtype=torch.float64) * scale + 20 * scale
    face = align(picture, points)
    fitted = similarity(points, template()[None] * 256)
    source = torch.cat([points, torch.ones(1, 5, 1, dtype=torch.float64)], 2)
    target = (source @ fitted.transpose(1, 2))[0]  # where the least-squares fit puts the points
    grid = (target / 256 * 2 - 1)[None, None]
    seen = F.grid_sample(face, grid, align_corners=False)[0, :2, 0].T * side
    assert torch.allclose(seen, points[0], atol=0.06 * scale)
    assert (target - template() * 256).norm(dim=1).max() < 12


def test_reduction_is_antialiased() -> None:
    board = ((torch.arange(1200)[:, None] + torch.arange(1200)) % 2).float().expand(1, 3, 1200, 1200)
    for scale in (2.2, 4.5, 9.0):  # frame pixels of about 1.1 to 4.5 pixels
        face = align(board, torch.tensor([POINTS]) * scale + 150)
        assert (face - 0.5).abs().max() < 0.26
        assert (face - 0.5).square().mean().sqrt() < 0.12
    assert (face - 0.5).abs().max() < 0.01  # where the box filter comes first


def test_faces_of_a_batch_do_not_touch_each_other() -> None:
    points = torch.tensor([POINTS]) * torch.tensor([0.4, 1.0, 2.4]).view(3, 1, 1)
    pictures = images()[:3]
    together = align(pictures, points)
    alone = torch.cat([align(p[None], q[None]) for p, q in zip(pictures, points)])
    assert torch.equal(together, alone)


def test_alignment_in_float64_and_half() -> None:
    points = torch.tensor([POINTS]) * 2
    exact = align(images()[:1].double(), points.double())
    assert exact.dtype == torch.float64
    assert torch.allclose(align(images()[:1], points).double(), exact, atol=2e-4)
    half = align(images()[:1].half(), points)
    assert half.dtype == torch.float32 and torch.allclose(half.double(), exact, atol=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(align(images()[:1], points).double(), exact, atol=2e-4)


def test_gradients_of_alignment_and_window() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 11, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    points = torch.tensor([POINTS, POINTS], dtype=torch.float64) / torch.tensor([[[12.0]], [[3.0]]])
    assert torch.autograd.gradcheck(lambda p: align(p, points, size=6), picture)
    face = torch.rand(1, 3, 10, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: window(f, 0.2, 4), face)


@pytest.mark.parametrize(("padding", "size"), [(0.2, 32), (0.2, 64), (0.25, 150), (0.25, 224), (0.5, 256)])
def test_window_shows_the_stated_part(padding: float, size: int) -> None:
    x = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    face = torch.stack([x.expand(256, 256), x[:, None].expand(256, 256), torch.full((256, 256), 0.3)])[None]
    part = window(face, padding, size)
    share = (1 + 2 * padding) / 2
    expected = (1 - share) / 2 + (torch.arange(size, dtype=torch.float64) + 0.5) / size * share
    inner = slice(1, -1)  # the frame's own edge repeats its last pixel
    assert torch.allclose(part[0, 0, size // 2, inner], expected[inner], atol=1e-6)
    assert torch.allclose(part[0, 1, inner, size // 2], expected[inner], atol=1e-6)
    assert torch.allclose(part[0, 2], torch.full_like(part[0, 2], 0.3))


def test_window_keeps_the_mean_of_any_pattern() -> None:
    stripes = (torch.arange(256) % 2).double().expand(1, 3, 256, 256)
    assert (window(stripes, 0.2, 32) - 0.5).abs().max() < 0.1


def test_points_must_match_the_images() -> None:
    with pytest.raises(FairAdapterError, match="one face for each image"):
        align(images()[:2], torch.tensor([POINTS]))


def test_points_follow_the_type_of_the_image() -> None:
    face = Face((0.0, 0.0, 9.0, 9.0), POINTS, 0.99)
    assert stack_points([face], torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert stack_points([face], torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    assert stack_points([], torch.zeros(1)).shape == (0, 5, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_faces_and_logits() -> None:
    pictures = images()[:8]
    on_gpu = FaceDetector().detect(pictures.cuda())
    for found, expected in zip(on_gpu, detector().detect(pictures)):
        assert_same_faces(found, expected, 0.05)
    faces = align(pictures.cuda(), stack_points([f[0] for f in on_gpu], pictures))
    assert torch.allclose(faces.cpu(), aligned().faces[:8], atol=1e-2)
    with torch.no_grad():
        expected = chain()(faces.cpu())
        chain().cuda()
        try:
            found = chain()(faces)
        finally:
            chain().cpu()
    for name, value in expected.items():
        assert torch.allclose(found[name].cpu(), value, atol=1e-3)
