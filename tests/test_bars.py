"""Bars on faces, shares of batches, and the command that draws them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from fair_adapter.shared import drawing
from fair_adapter.shared.attributes import (
    AGE,
    GENDER,
    RACE,
    RACE4,
    SKIN_TONE,
    STANDARD,
    TABLE,
    Attribute,
    TargetDistribution,
    ordered,
)
from fair_adapter.shared.bar_grid import (
    class_shares,
    count_readings,
    draw_grid,
    draw_legend,
    draw_notes,
    draw_shares,
    draw_wide,
)
from fair_adapter.shared.bars import Bar, FaceBars, draw_faces, read_bars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import Face
from fair_adapter.shared.metrics import wilson_interval
from fair_adapter.tests.fixture_faces import FOLDER
from fair_adapter.trainer import faces as command

GREY = (97, 97, 97)
PALETTE = {(a.name, label): look.colour for a in TABLE for label, look in zip(a.classes, a.looks)}
BOX = (180.0, 150.0, 330.0, 350.0)


def pixels(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Mask (H, W) of the pixels of exactly that colour."""
    return (np.asarray(image) == np.array(colour)).all(2)


def face(*bars: tuple[str, str, float, bool], box: tuple[float, float, float, float] = BOX) -> FaceBars:
    return FaceBars(box, tuple(Bar(a, c, p, PALETTE[a, c], sure) for a, c, p, sure in bars))


def canvas(side: int = 512) -> Image.Image:
    return Image.new("RGB", (side, side), GREY)


# ---- bars on a face


@pytest.mark.parametrize("side", [128, 512])
def test_height_is_confidence(side: int) -> None:
    box = tuple(v * side / 512 for v in BOX)
    heights = []
    for confidence in (0.25, 0.5, 1.0):
        # narrow bars carry no letter, so that the count is exact
        drawn = draw_faces(canvas(side), [face(("gender", "female", confidence, True), box=box)])
        mask = pixels(drawn, PALETTE["gender", "female"])
        heights.append(mask.any(1).sum())
        assert mask.any(0).sum() >= 5
    assert heights[0] / heights[2] == pytest.approx(0.25, abs=1.1 / heights[2])
    assert heights[1] / heights[2] == pytest.approx(0.5, abs=1.1 / heights[2])
    assert heights[2] > 0.2 * side


def test_bars_stand_in_order_gender_race_age() -> None:
    logits = {a.name: torch.eye(len(a))[:1] * 9 for a in (AGE, RACE, GENDER)}
    logits["mood"] = torch.tensor([[0.0, 8.0]])
    attributes = (Attribute("mood", ("calm", "cross")), AGE, RACE, GENDER)
    (reading,) = read_bars(logits, attributes, [Face(BOX, (), 0.99)])
    assert [(b.attribute, b.label) for b in reading.bars] == [
        ("gender", "female"),
        ("race", "wmelh"),
        ("age", "young"),
        ("mood", "cross"),
    ]
    drawn = draw_faces(canvas(), [FaceBars(BOX, reading.bars[:3])])
    columns = [np.flatnonzero(pixels(drawn, bar.colour).any(0)) for bar in reading.bars[:3]]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()


def test_confidence_and_certainty_come_from_the_logits() -> None:
    logits = {"gender": torch.log(torch.tensor([[0.69, 0.31], [0.29, 0.71]]))}
    first, second = read_bars(logits, (GENDER,), [Face(BOX, (), 0.99)] * 2, certain_from=0.7)
    assert (first.bars[0].label, first.bars[0].certain) == ("female", False)
    assert (second.bars[0].label, second.bars[0].certain) == ("male", True)
    assert first.bars[0].confidence == pytest.approx(0.69, abs=1e-6)


def test_uncertain_bars_are_hatched() -> None:
    sure = draw_faces(canvas(128), [face(("race", "black", 0.6, True), box=(40, 40, 80, 90))])
    unsure = draw_faces(canvas(128), [face(("race", "black", 0.6, False), box=(40, 40, 80, 90))])
    colour = PALETTE["race", "black"]
    assert 0.3 < pixels(unsure, colour).sum() / pixels(sure, colour).sum() < 0.7


def test_no_face_is_written_at_the_foot() -> None:
    plain = canvas(128)
    drawn = np.asarray(draw_faces(plain, []))
    changed = (drawn != np.array(GREY)).any(2).any(1)
    assert not changed[:90].any() and changed[-1]
    assert pixels(Image.fromarray(drawn), (255, 255, 255)).sum() > 20  # the letters


def test_face_itself_stays_visible() -> None:
    drawn = np.asarray(draw_faces(canvas(), [face(*(("gender", "male", 1.0, True),) * 3)]))
    x0, y0, x1, y1 = map(int, BOX)
    assert (drawn[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6] == np.array(GREY)).all()


def test_plates_of_neighbours_do_not_cover_each_other() -> None:
    boxes = [(100.0, 100.0, 180.0, 200.0), (250.0, 100.0, 330.0, 200.0), (100.0, 300.0, 180.0, 400.0)]
    labels = [("gender", "female"), ("gender", "male"), ("age", "old")]
    one = [
        pixels(draw_faces(canvas(), [face((*c, 0.9, True), box=b)]), PALETTE[c])
        for b, c in zip(boxes, labels)
    ]
    together = draw_faces(canvas(), [face((*c, 0.9, True), box=b) for b, c in zip(boxes, labels)])
    for mask, label in zip(one, labels):
        assert pixels(together, PALETTE[label]).sum() == mask.sum() > 0


def test_preview_is_half_as_strong() -> None:
    faces = [face(("gender", "female", 0.9, True))]
    plain, full = np.asarray(canvas()).astype(float), np.asarray(draw_faces(canvas(), faces)).astype(float)
    preview = np.asarray(draw_faces(canvas(), faces, preview=True)).astype(float)
    assert np.abs(preview - (plain + full) / 2).max() <= 1
    assert np.abs(preview - plain).max() > 20


@given(
    st.sampled_from(["RGB", "L", "RGBA", "P"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(*[st.floats(-60, 90)] * 4),
    st.integers(0, 5),
)
def test_any_picture_and_any_box_can_be_drawn(
    mode: str, width: int, height: int, corners, count: int
) -> None:
    picture = Image.new(mode, (width, height))
    before = picture.tobytes()
    x0, y0, x1, y1 = corners
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    drawn = draw_faces(picture, [face(*[("age", "old", 0.4, False)] * count, box=box)])
    assert drawn.size == picture.size and drawn.mode == "RGB"
    assert picture.tobytes() == before


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB (3,)."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    scaled = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_differ_also_for_colour_blind_people() -> None:
    """CIE76 distance of any two classes of an attribute; 2.3 is just noticeable side by side."""
    assert len(set(PALETTE.values())) == len(PALETTE)
    eyes = {  # Machado, Oliveira & Fernandes 2009, severity 1, linear light
        "all cones": np.eye(3),
        "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
        "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
        "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
    }
    for attribute, least in ((GENDER, 45), (RACE, 30), (RACE4, 20), (AGE, 25), (SKIN_TONE, 12)):
        linear = (np.array([look.colour for look in attribute.looks]) / 255) ** 2.2
        for matrix in eyes.values():
            seen = [lab(np.clip(matrix @ colour, 0, 1)) for colour in linear]
            assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > least


def test_attributes_in_words_get_colours_of_their_own() -> None:
    glasses = Attribute("glasses", ("none", "reading", "sun"))
    assert len({look.colour for look in glasses.looks}) == 3
    assert ordered([glasses, AGE, GENDER]) == [GENDER, AGE, glasses]


# ---- shares, legend, grid


def test_shares_are_frequencies_with_wilson_intervals_and_targets() -> None:
    faces = [face(("gender", "female", 0.9, True))] * 3 + [face(("gender", "male", 0.6, False))]
    target = TargetDistribution.parse("gender=75/25")
    female, male = class_shares(faces, (GENDER,), target)
    assert (female.share, male.share) == (0.75, 0.25)
    assert (female.low, female.high) == wilson_interval(3, 4)
    assert (female.target, male.target) == (0.75, 0.25)
    empty = class_shares([], (GENDER, AGE), target)
    assert [(s.share, s.low, s.high, s.target) for s in empty] == [
        (0, 0, 1, 0.75),
        (0, 0, 1, 0.25),
        (0, 0, 1, None),
        (0, 0, 1, None),
    ]


def test_targets_go_to_the_classes_of_their_names() -> None:
    """A classifier of three races and a target of four, and the other way round."""
    four = TargetDistribution((RACE4,), (0.1, 0.2, 0.3, 0.4))
    three = TargetDistribution((RACE,), (0.2, 0.3, 0.5))
    assert [s.target for s in class_shares([], (RACE,), four)] == pytest.approx([0.1, 0.2, 0.3])
    assert [s.target for s in class_shares([], (RACE4,), three)] == pytest.approx([0.2, 0.3, 0.5, 0.0])


def test_share_bars_are_as_long_as_the_shares() -> None:
    faces = [face(("gender", "female", 0.9, True))] * 30 + [face(("gender", "male", 0.9, True))] * 10
    panel = draw_shares(class_shares(faces, (GENDER,)), 600)
    lengths = [np.flatnonzero(pixels(panel, PALETTE["gender", c]).any(0)) for c in GENDER.classes]
    spans = [columns.max() - columns.min() + 1 for columns in lengths]
    assert spans[1] / spans[0] == pytest.approx(1 / 3, abs=0.02)
    left = lengths[0].min()
    full = spans[0] / 0.75
    with_target = draw_shares(class_shares(faces, (GENDER,), TargetDistribution.parse("gender=50/50")), 600)
    changed = np.flatnonzero((np.asarray(panel) != np.asarray(with_target)).any(2).any(0))
    assert abs(changed.mean() - (left + full / 2)) < 2  # the target line at 50%


def test_notes_are_wrapped_and_nothing_is_cut() -> None:
    text = "eight faces can not tell one half from seven tenths"
    wide, narrow = draw_notes([text], 900), draw_notes([text], 150)
    assert (wide.width, narrow.width) == (900, 150) and narrow.height > 2 * wide.height
    inks = [(np.asarray(panel) != np.asarray(panel)[0, 0]).any(2).sum() for panel in (wide, narrow)]
    assert inks[0] == pytest.approx(inks[1], rel=0.02)
    assert draw_notes([text, ""], 900).height > wide.height


def test_legend_shows_every_class_and_wraps() -> None:
    for width in (200, 900):
        legend = draw_legend((GENDER, RACE, AGE), width, target=True)
        assert legend.width == width
        for attribute in (GENDER, RACE, AGE):
            for look in attribute.looks:
                assert pixels(legend, look.colour).sum() > 50
    assert draw_legend((GENDER,), 200).height > draw_legend((GENDER,), 900).height


@pytest.mark.parametrize("dark", [False, True])
def test_grid_holds_every_picture(dark: bool) -> None:
    colours = [(200, 10 * i, 40) for i in range(7)]
    pictures = [Image.new("RGB", (90 + 30 * i, 120), colour) for i, colour in enumerate(colours)]
    readings = [[face(("gender", "female", 0.9, True), box=(20, 20, 60, 60))]] * 6 + [[]]
    target = TargetDistribution.parse("gender=50/50")
    sheet = draw_grid(pictures, readings, (GENDER,), target, "A title", columns=4, dark=dark)
    for colour in colours:
        assert pixels(sheet, colour).sum() > 1000
    preview = draw_grid(pictures, readings, (GENDER,), target, "A title", columns=4, dark=dark, preview=True)
    assert preview.size == sheet.size and preview.tobytes() != sheet.tobytes()


def test_grid_needs_a_reading_for_each_picture() -> None:
    with pytest.raises(FairAdapterError, match="found 1 and 2"):
        draw_grid([canvas()], [[], []], (GENDER,))
    with pytest.raises(FairAdapterError, match="found 0 and 0"):
        draw_grid([], [], (GENDER,))


def test_counts_are_said_in_words() -> None:
    unsure = face(("gender", "female", 0.6, False), ("age", "old", 0.9, True))
    assert count_readings([[unsure], []]) == "1 of 2 images with a face, 1 of 2 readings uncertain"
    assert count_readings([[]]) == "0 of 1 image with a face"


# ---- text


def test_text_has_its_size_with_an_old_pillow_too(monkeypatch) -> None:
    size = drawing.text_size("wmelh", 40)
    assert 35 <= size[1] <= 50
    bitmap = ImageFont.load_default

    def without_sizes(*arguments: object) -> ImageFont.ImageFont:
        if arguments:
            raise TypeError("load_default() takes 0 positional arguments but 1 was given")
        return bitmap()

    drawing._font.cache_clear()
    drawing.text_mask.cache_clear()
    try:
        monkeypatch.setattr(ImageFont, "load_default", without_sizes)
        assert drawing.text_size("wmelh", 40)[1] == 40
        assert drawing.text_size("wmelh", 40)[0] == pytest.approx(size[0], rel=0.6)
        assert draw_faces(canvas(), []).size == (512, 512)
    finally:
        drawing._font.cache_clear()
        drawing.text_mask.cache_clear()


def test_long_text_is_cut_to_its_room() -> None:
    assert drawing.fit_text("short", 14, 500) == "short"
    cut = drawing.fit_text("a prompt that is much too long for this room", 14, 120)
    assert cut.endswith("...") and drawing.text_size(cut, 14)[0] <= 120
    assert drawing.fit_text("anything", 14, 1) == ""


# ---- the command


def run_command(*arguments: object) -> int:
    return command.main([*map(str, arguments), "--device", "cpu"])


def test_command_reads_a_folder_and_goes_on_past_bad_pictures(tmp_path: Path, capsys) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("female_asian_0.jpg", "male_black_0.jpg"):
        (source / name).write_bytes((FOLDER / name).read_bytes())
    canvas(80).save(source / "blank.png")
    canvas(80).save(source / "blank.webp")
    (source / "cut.jpg").write_bytes((FOLDER / "male_black_0.jpg").read_bytes()[:4000])
    (source / "phone.heic").write_bytes(b"")
    before = {p: p.read_bytes() for p in source.iterdir()}
    assert run_command(source, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert re.search(
        r"female_asian_0\.jpg +1 +female [01]\.\d\d +asian [01]\.\d\d +young [01]\.\d\d, \d\d years",
        printed.out,
    )
    assert re.search(r"blank\.png +no face of 10 px", printed.out)
    assert "4 of 5 pictures read" in printed.out
    assert re.fullmatch(
        r"left out: .*cut\.jpg: expected a complete image.*\nleft out as no pictures: 1 \.heic\n", printed.err
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "female_asian_0_faces.png",
        "male_black_0_faces.png",
        "blank_png_faces.png",
        "blank_webp_faces.png",
        "overview.png",
    }
    assert {p: p.read_bytes() for p in source.iterdir()} == before
    with Image.open(tmp_path / "out" / "male_black_0_faces.png") as drawn:
        assert (
            drawn.size == (256, 256) and pixels(drawn.convert("RGB"), PALETTE["gender", "male"]).sum() > 100
        )


def test_command_reads_every_face_of_a_crowd(tmp_path: Path, capsys) -> None:
    crowd = Image.new("RGB", (768, 256))
    for index, name in enumerate(("female_asian_0.jpg", "male_black_0.jpg", "male_wmelh_0.jpg")):
        with Image.open(FOLDER / name) as picture:
            crowd.paste(picture, (256 * index, 0))
    crowd.save(tmp_path / "crowd.png")
    for extra, lines in (([], 1), (["--all-faces", "--certain", "0.999999"], 3)):
        assert run_command(tmp_path / "crowd.png", "--out", tmp_path / "out", *extra) == 0
        out = capsys.readouterr().out
        assert out.count("crowd.png") == lines
        assert ("race, age" in out) == bool(extra)


def test_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys) -> None:
    good = FOLDER / "male_black_0.jpg"
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "face_faces.png").write_bytes(good.read_bytes())
    (tmp_path / "face.png").write_bytes(good.read_bytes())
    out = ["--out", tmp_path / "out"]
    cases = [
        ([tmp_path / "missing.png", *out], "found nothing"),
        ([tmp_path / "text.png", *out], "expected an image"),
        ([tmp_path / "empty", *out], "found none in this folder"),
        ([good, "--out", tmp_path / "text.png"], "can't"),
        ([good, "--out", tmp_path / "text.png" / "deeper"], "can't"),
        ([good, *out, "--classifier", "defalt"], "did you mean 'default'"),
        ([tmp_path, "--out", tmp_path], "would be overwritten"),
    ]
    for arguments, expected in cases:
        assert run_command(*arguments) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(r"error: [^\n]+\n", printed.err) and expected in printed.err, printed.err
    assert (tmp_path / "face_faces.png").read_bytes() == good.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 4, 7, 8, 16])
def test_a_wide_sheet_is_readable_in_a_low_place(count: int) -> None:
    """An empty gallery gives a preview some 180 px of height and 600 of width."""
    size = 22
    face = FaceBars((20.0, 20.0, 80.0, 90.0), (Bar("gender", "female", 0.9, (230, 159, 0)),))
    images = [Image.new("RGB", (96, 128), (200, 150, 120))] * count
    sheet = draw_wide(
        images, [[face]] * count, STANDARD, title="step 3 of 20", preview=True, dark=True, size=size
    )
    scale = min(600 / sheet.width, 180 / sheet.height)
    assert sheet.width > 1.8 * sheet.height and scale * size >= 9.5
    assert (
        scale * sheet.width > 320
        and (sheet.width, sheet.height)
        == draw_wide(images, [[]] * count, STANDARD, title="step 3 of 20", size=size).size
    ), "it keeps its size while faces come and go"
    with pytest.raises(FairAdapterError, match="as many readings"):
        draw_wide(images, [], STANDARD)
