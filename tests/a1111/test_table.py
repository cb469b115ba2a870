"""Targets by prompt in the extension: parts, running hosts, and the menu in Chromium."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fair_adapter.a1111_extension import infotext, uploads
from fair_adapter.a1111_extension.aims import Aim, PictureText, PromptAims, shared_lora
from fair_adapter.a1111_extension.injection import NativeFiles, NativeStore, insert_each
from fair_adapter.a1111_extension.request import FairRequest
from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.target_table import TargetTable
from fair_adapter.tests.a1111 import browser, lab
from fair_adapter.tests.a1111.test_hosts import last, picture, txt2img
from fair_adapter.tests.tiny_adapter import make_adapter

HEAD = "pattern,target,source,year\n"
ROWS = HEAD + "red,gender=20/80,Census of colours,2031\nblue,gender=80/20,,\n"
P = "script_txt2img_fair_adapter_"
LAB = Path(__file__).resolve().parents[2] / ".lab"


# ---- parts


def aims_of(store: NativeStore, said: list[str]) -> PromptAims:
    adapter = make_adapter()

    def make(target: TargetDistribution | None) -> Aim:
        weights = adapter.at(target)
        return Aim(weights.target, weights, store.materialise(adapter, weights, own.files))

    own = PromptAims(TargetTable.parse(ROWS, "colours.csv"), adapter.targets.default, make, said.append)
    return own


def test_each_prompt_has_its_own_files_and_none_goes_before_the_job_ends(tmp_path: Path) -> None:
    said: list[str] = []
    own = aims_of(NativeStore(tmp_path / "embeddings", tmp_path / "loras", keep=1), said)
    red, blue, green = own.put(0, ["a red hat", "fair_0123456789ab a blue hat", "a green hat"])
    assert [aim.text.split(";")[0] for aim in (red, blue, green)] == [
        "gender=female:20,male:80", "gender=female:80,male:20", "gender=female:50,male:50",
    ]  # fmt: skip
    assert said == ["colours.csv: no row for 'a green hat', so the default target"]
    assert red.told == "colours.csv, row 2: red (Census of colours, 2031)" and green.told == ""
    assert len({aim.used for aim in (red, blue, green)}) == 3
    kept = {path.stem for path in (tmp_path / "embeddings" / "fair_adapters").iterdir()}
    assert kept == {aim.files.token for aim in (red, blue, green) if aim.files}
    assert own.put(4, ["the same red hat"])[0].files is red.files and own.places[4].text == red.text
    with pytest.raises(FairAdapterError, match="expected one target for all pictures of a batch, found 3"):
        shared_lora([red, blue, green])
    assert shared_lora([red, red]) == red.files.lora if red.files else False
    assert shared_lora([Aim(files=NativeFiles("a", None)), Aim(files=NativeFiles("b", None))]) is None


def test_every_prompt_gets_its_own_words() -> None:
    first, second = "fair_000000000001", "fair_000000000002"
    assert insert_each(["a", "b", "c"], [first, None, second]) == [f"{first} a", "b", f"{second} c"]
    assert insert_each(["a", "b"], [first]) == [f"{first} a", f"{first} b"]


def test_a_value_of_each_picture_is_that_of_the_first_where_a_host_does_not_ask() -> None:
    text = PictureText(lambda place: f"picture {place}")
    p = SimpleNamespace(iteration=2, batch_size=3)
    assert text == "picture 0" and text(p=p, index=1, seed=4) == "picture 7"
    assert text(p=p, index=0, use_main_prompt=True) == "picture 0"


def test_parameters_name_the_table_and_restore_it() -> None:
    entries = infotext.describe(FairRequest(True, "x", table="colours.csv"), "gender=female:20,male:80", "00")
    assert entries["Fair table"] == "colours.csv" and infotext.pasted_table(entries) == "colours.csv"
    assert infotext.pasted_table({"Fair adapter": "x"}) == "None" and infotext.pasted_table({}) is None
    for none in ("", "None"):
        assert "Fair table" not in infotext.describe(FairRequest(True, "x", table=none))
    alone = infotext.describe(FairRequest(True, table="colours.csv"), "gender=female:20,male:80")
    assert alone == {"Fair adapter": "None", "Fair target": "gender=female:20,male:80",
                     "Fair table": "colours.csv"}  # fmt: skip


def test_the_menu_says_what_a_table_holds_or_what_is_wrong(tmp_path: Path) -> None:
    service = FairService([tmp_path], tmp_path / "data")
    assert service.table_choices() == ["None", "invented_occupations.csv"]
    (tmp_path / "colours.csv").write_text(ROWS, encoding="utf-8")
    (tmp_path / "wrong.csv").write_text(HEAD + "red,gender=20/90,,\n", encoding="utf-8")
    assert service.table_choices()[1:] == ["colours.csv", "wrong.csv", "invented_occupations.csv"]
    assert "colours.csv: red, blue; the target above" in service.advice("None", "", None, "colours.csv")
    assert "wrong.csv, row 2: target gender: shares sum to 110" in service.table_advice("None", "wrong.csv")
    assert service.table_advice("None", "None") == service.table_advice("None", "") == ""


def test_an_uploaded_table_is_checked_and_overwrites_nothing(tmp_path: Path) -> None:
    service = FairService([tmp_path / "mine"], tmp_path / "data")
    upload = tmp_path / "colours.csv"
    upload.write_text(ROWS, encoding="utf-8")
    assert "colours.csv: 2 rows" in uploads.add_table(service, SimpleNamespace(name=str(upload)))
    kept = tmp_path / "mine" / "colours.csv"
    assert kept.read_text(encoding="utf-8") == ROWS and "colours.csv" in service.table_choices()
    upload.write_text(ROWS.replace("red", "green"), encoding="utf-8")
    assert "exists already; choose another name" in uploads.add_table(service, str(upload))
    assert kept.read_text(encoding="utf-8") == ROWS
    upload.write_text(HEAD + "red,gender=20/90,,\n", encoding="utf-8")
    told = uploads.add_table(service, str(upload))
    assert "colours.csv, row 2: target gender: shares sum to 110" in told and str(tmp_path) not in told
    (tmp_path / "colours.xlsx").write_bytes(b"PK")
    assert "expected a .csv file" in uploads.add_table(service, str(tmp_path / "colours.xlsx"))
    assert uploads.add_table(service, None) == "" and len(list(kept.parent.iterdir())) == 1


# ---- in running hosts


@pytest.fixture
def table(webui: lab.Server) -> Iterator[str]:
    path = webui.root / "models" / "fair_adapters" / "colours.csv"
    path.write_text(ROWS, encoding="utf-8")
    yield path.name
    path.unlink()


def entry(text: str, name: str) -> str:
    found = re.search(rf'{name}: ("[^"]*"|[^,\n]*)', text)
    return found[1].strip('"') if found else ""


@pytest.mark.a1111
@pytest.mark.parametrize("place", ["hidden", "in the prompt"])
def test_pictures_of_a_batch_are_drawn_at_the_target_of_their_prompt(
    webui: lab.Server, table: str, place: str
) -> None:
    """`__colour__` gives every picture a prompt of its own."""
    body = {"prompt": "__colour__ portrait", "batch_size": 2, "n_iter": 2, "enable_hr": place == "hidden"}
    fair = {"adapter": "gender-words", "place": place, "target": "gender=40/60"}
    ours = txt2img(webui, {**fair, "table": table}, **body)
    shares = ("20/80", "80/20", "40/60")
    alone = {each: txt2img(webui, {**fair, "target": f"gender={each}"}, **body) for each in shares}
    expected = []
    for prompt in (text.split("\n")[0] for text in ours["infotexts"]):
        expected.append("20/80" if "red" in prompt else "80/20" if "blue" in prompt else "40/60")
    assert {"20/80", "80/20"} <= set(expected[1:])
    for i, each in enumerate(expected[1:], 1):  # the grid comes first
        female, male = each.split("/")
        text = ours["infotexts"][i]
        assert entry(text, "Fair target") == f"gender=female:{female},male:{male}"
        assert entry(text, "Fair hash") == entry(alone[each]["infotexts"][i], "Fair hash")
        assert entry(text, "Fair table") == table
        assert ours["images"][i] == alone[each]["images"][i]
        chunk = json.loads(picture(ours["files"][i]).info["fair_adapter"])
        assert chunk["target"] == f"gender=female:{female},male:{male}"


@pytest.mark.a1111
def test_the_panel_counts_targets_apart_and_says_what_has_no_row(webui: lab.Server, table: str) -> None:
    body = {"prompt": "__colour__ portrait", "batch_size": 2}
    txt2img(webui, {"adapter": "gender-words", "table": table}, **body)
    cells = last(webui)["cells"]
    assert {cell["target"] for cell in cells} == {"gender=female:20,male:80", "gender=female:80,male:20"}
    assert all(len(cell["pictures"]) == 1 for cell in cells)
    plain = txt2img(webui, {"adapter": "gender-words", "table": table, "target": "gender=30/70"})
    assert plain["images"] == txt2img(webui, {"adapter": "gender-words", "target": "gender=30/70"})["images"]
    txt2img(webui, {"adapter": "gender-words", "table": table, "target": "gender=30/70"})
    assert "colours.csv: no row for 'a portrait of a nurse', so the default target" in last(webui)["notes"]


@pytest.mark.a1111
def test_png_info_and_a_plot_bring_the_table_along(webui: lab.Server, table: str) -> None:
    fair = {"adapter": "gender-words", "table": table}
    first = txt2img(webui, fair, prompt="a red portrait")
    again = txt2img(webui, prompt=None, seed=None, infotext=first["infotexts"][0])
    assert again["images"] == first["images"] and again["infotexts"] == first["infotexts"]
    body = {"prompt": "a red portrait", "steps": 5, "seed": 11}
    body |= {"alwayson_scripts": {"Fair Adapter": {"args": [{"adapter": "gender-words"}]}}}
    axis = "[Fair Adapter] Targets by prompt"
    cells = webui.call("/standin/plot", {**body, "axis": axis, "values": ["None", table]})
    found = [entry(text, "Fair target") for text in cells["infotexts"]]
    assert found == ["gender=female:50,male:50", "gender=female:20,male:80"]


@pytest.mark.a1111
def test_what_can_not_be_done_is_said_and_the_pictures_are_made(webui: lab.Server, table: str) -> None:
    body = {"prompt": "__colour__ portrait", "batch_size": 2}
    ours = txt2img(webui, {"adapter": "random-both", "table": table}, **body)
    assert "a LoRA can't follow; set the batch size to 1" in ours["infotexts"][1]
    assert ours["images"] == txt2img(webui, **body)["images"] and "Fair hash" not in ours["infotexts"][1]
    one = txt2img(webui, {"adapter": "random-both", "table": table}, **{**body, "batch_size": 1, "n_iter": 2})
    assert "Fair hash" in one["infotexts"][1] and "Fair error" not in one["infotexts"][1]
    for name, said in (("../x", "expected a file name below"), ("colors", "did you mean 'colours.csv'?")):
        text = txt2img(webui, {"adapter": "gender-words", "table": name})["infotexts"][0]
        assert "Fair error" in text and said in text and "Fair hash" not in text


@pytest.mark.a1111
def test_an_artist_chooses_a_table_beside_the_sliders(webui: lab.Server, table: str) -> None:
    browser.require()
    with browser.opened(webui.url) as page:
        shown = browser.Webui(page)
        shown.open_accordion()
        shown.choose(f"{P}adapter", webui.adapter)
        page.locator(f"#{P}refresh").first.click()
        shown.choose(f"{P}table", table)
        told = "s => document.querySelector(s).innerText.includes('red, blue; the target above')"
        page.wait_for_function(told, arg=f"#{P}advice")
        shown.fill("txt2img_prompt", "__colour__ portrait")
        shown.small(steps=8, batch=2)
        shown.shot(LAB / "screenshots" / webui.kind / "table.png")
        shown.generate()
        page.wait_for_selector("#fair_panel_txt2img .fair-tiles img")
        panel = page.locator("#fair_panel_txt2img").first
        assert "colours.csv, row 2: red (Census of colours, 2031)" in panel.inner_text()
        assert panel.locator("figure").count() == 2 and panel.locator("h4").count() == 2
        page.screenshot(path=LAB / "screenshots" / webui.kind / "table_panel.png", full_page=True)
        shown.choose(f"{P}table", "None")
        page.locator("#paste").first.click()
        field = f"#{P}table input"
        page.wait_for_function(f"s => document.querySelector(s).value === '{table}'", arg=field)
        assert page.errors == []
