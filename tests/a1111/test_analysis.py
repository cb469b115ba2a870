"""The tab's analysis of a folder that holds more than good pictures."""

from pathlib import Path

import pytest
from PIL import Image

from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.reader import FaceReader
from fair_adapter.shared.switches import is_apart
from fair_adapter.tests.fixture_faces import FOLDER

pytest.importorskip("gradio")

from fair_adapter.a1111_extension import tab


def test_a_folder_is_read_to_its_end_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    whole = (FOLDER / "male_black_0.jpg").read_bytes()
    (tmp_path / "person.jfif").write_bytes(whole)
    (tmp_path / "phone.heic").write_bytes(b"")
    Image.new("RGB", (512, 768)).save(tmp_path / "empty.png")
    for index in range(tab.TOLD + 2):
        (tmp_path / f"a{index:02d}.jpg").write_bytes(whole[:3000])
    service = FairService([], tmp_path / "data")
    html, sheet = tab.analyse(service, tab.given_files(None, str(tmp_path)), "", str(tmp_path))
    assert (
        sheet is not None and "2 pictures" in html and "1 without a face of 26 px" in html and "male" in html
    )
    assert html.count("left out: a") == tab.TOLD and "left out: a00.jpg: expected a complete image" in html
    assert "2 more" in html and "left out as no pictures: 1 .heic" in html and str(tmp_path) not in html


def test_pictures_are_read_apart_from_what_the_host_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    service, read, found = FairService([]), FaceReader.read, []
    monkeypatch.setattr(FaceReader, "read", lambda *given: found.append(is_apart()) or read(*given))
    html, _ = tab.analyse(service, [FOLDER / "male_black_0.jpg"], "")
    assert found == [True] and "1 pictures" in html and not is_apart()
