"""What the extension costs a host at its start and a server that runs for weeks, counted."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.a1111_extension.options import FairOptions
from fair_adapter.a1111_extension.scratch import KEPT, Scratch
from fair_adapter.a1111_extension.service import REMEMBERED, FairService, OnceFilter
from fair_adapter.shared import reader
from fair_adapter.tests.a1111 import lab

# Each of these alone takes longer to import than all of ours.
LATE = ("facenet_pytorch", "torchvision", "scipy", "diffusers", "transformers", "cv2")


@pytest.mark.a1111
def test_callbacks_are_registered_where_that_is_cheap(webui: lab.Server, tmp_path: Path) -> None:
    """A host reads the sources of its whole call stack at each; the frames of the import system are the dear
    ones, because it looks for their file among all modules."""
    root = lab.make_installation(tmp_path / "fresh")
    fresh = lab.start(Path(webui.process.args[0]), root, webui.kind)
    try:
        start = fresh.call("/standin/start")
    finally:
        fresh.stop()
    ours = [row for row in start["registrations"] if "fair-adapter" in row[1]]
    assert sorted(name for name, *_ in ours) == sorted(
        ["before_ui", "ui_settings", "ui_tabs", "app_started", "cfg_after_cfg", "before_image_saved",
         "infotext_pasted", "script_unloaded"]
    )  # fmt: skip
    importing = [(name, imports) for name, _, _, imports in ours if imports]
    assert [name for name, _ in importing] == ["before_ui"], "the others wait for the page to be made"
    assert importing[0][1] <= 2, "from the script file, not from what it imports"
    early = [name for name in LATE if name in start["modules"]]
    assert early == [], "imported when the first face is read"


def test_the_slider_of_certainty_loads_no_net_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = reader.load_classifier

    def counting(name: str) -> Any:
        loaded.append(name)
        return real(name)

    monkeypatch.setattr(reader, "load_classifier", counting)
    now = [FairOptions(device="CPU")]
    service = FairService([tmp_path], tmp_path / "data", options=lambda: now[0])
    for certain in (0.6, 0.7, 0.8):
        now[0] = replace(now[0], certain=certain)
        assert service.reader().certain == certain and service.reader().attributes
    assert loaded == ["default"]


def test_the_log_filter_forgets() -> None:
    once = OnceFilter()

    def passes(line: str) -> bool:
        return once.filter(logging.LogRecord("x", logging.WARNING, "", 0, line, None, None))

    assert passes("again") and not passes("again")
    for number in range(10 * REMEMBERED):
        assert passes(f"picture {number}")
        assert not passes("again"), "what is said again and again stays unsaid"
    assert len(once.said) <= REMEMBERED


def test_downloads_leave_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tab's clicks, then the program's end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch = Scratch()
    for number in range(3 * KEPT):
        place = scratch.place("sheet.png")
        place.write_text(str(number))
        assert place.name == "sheet.png" and place.read_text() == str(number)
        assert len(list(tmp_path.iterdir())) == 1 and len(list(tmp_path.rglob("sheet.png"))) <= KEPT
    folder = scratch._folder
    assert folder is not None
    folder.cleanup()
    assert list(tmp_path.iterdir()) == []
    assert scratch.place("again.csv").parent.is_dir(), "also where somebody tidied up"
