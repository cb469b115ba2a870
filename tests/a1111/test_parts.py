"""The extension's logic without a host: arguments, prompts, parameters, records, HTML, routes."""

import base64
import importlib
import json
import os
import sqlite3
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fair_adapter.a1111_extension import infotext, injection, plot, records, routes, views
from fair_adapter.a1111_extension.generation import Generation
from fair_adapter.a1111_extension.job import Job
from fair_adapter.a1111_extension.options import OPTIONS, FairOptions, read_options
from fair_adapter.a1111_extension.request import (
    ARGUMENTS,
    FairRequest,
    is_enabled,
    read_request,
    with_changes,
)
from fair_adapter.a1111_extension.service import FairService, check_base
from fair_adapter.shared.attributes import RACE, TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.library import AdapterSummary
from fair_adapter.shared.statistics import FairnessStatistics
from fair_adapter.tests.tiny_adapter import FIXED, make_adapter

TOKEN = "fair_0123456789ab"
FACE = FaceBars((1.0, 2.0, 30.0, 40.0), (Bar("gender", "female", 0.91, (230, 159, 0)),))
words = st.text(alphabet="abc AND,()<>:_019", max_size=40)


# ---- arguments


def test_positional_arguments_keep_their_order() -> None:
    """The API's list: names may only be appended, or old requests mean something else."""
    assert ARGUMENTS == ("enabled", "adapter", "target", "strength", "place", "live", "overlay", "table")
    assert read_request([True, "x", "gender=50/50", 1]) == FairRequest(True, "x", "gender=50/50", 1.0)
    assert read_request([]) == FairRequest()


def test_one_object_is_the_same_request() -> None:
    assert read_request([{"adapter": "x", "strength": 0.5}]) == FairRequest(True, "x", strength=0.5)
    assert read_request([{"enabled": False}, "ignored tail"]) == FairRequest()
    assert [is_enabled(a) for a in ([], [False], [None], [True], [{}], [{"enabled": False}], ["yes"])] == [
        False, False, False, True, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([True, 3], "'adapter': expected a text"),
        ([1, "x"], "'enabled': expected true or false"),
        ([True, "x", "", float("nan")], "'strength': expected a number"),
        ([True, "x", "", True], "'strength': expected a number"),
        ([True, "x", "", 99], "'strength': expected -2 to 4"),
        ([True, "x", "", 1, "below"], "'place': expected one of hidden, in the prompt"),
        ([True, "x", "", 1, "hidden", "yes"], "'live': expected true or false"),
        ([{"adaptor": "x"}], "did you mean 'adapter'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[Any], said: str) -> None:
    with pytest.raises(FairAdapterError, match=said):
        read_request(arguments)


@pytest.mark.parametrize("evaluations", [1, 2])
def test_steps_are_the_samplers_not_the_evaluations(evaluations: int) -> None:
    """Heun and DPM++ SDE evaluate the model twice in a step; the host counts after the first."""
    offered: list[int] = []
    live: Any = SimpleNamespace(offer=lambda step, total, x0: offered.append(step))
    job = Job(FairRequest(), "txt2img", live=live)
    host: Any = None
    generation = Generation(FairService([]), host, "txt2img")
    for step in range(10):
        for evaluation in range(evaluations):
            generation.denoised(job, torch.zeros(1), max(0, step - 1 + evaluation), 10)
    assert offered == list(range(1, 11))


def test_a_plot_changes_single_values() -> None:
    request = with_changes(FairRequest(True, "x"), {"strength": 2.0})
    assert request == FairRequest(True, "x", strength=2.0)
    p = SimpleNamespace()
    plot.setter("strength")(p, 0.5, [])
    plot.setter("target")(p, "gender=10/90", [])
    assert p.fair_adapter_changes == {"strength": 0.5, "target": "gender=10/90"}


def test_plot_axes_are_added_once() -> None:
    def make(label: str, kind: type, apply: Any) -> Any:
        return SimpleNamespace(label=label, type=kind, apply=apply)

    module = SimpleNamespace(axis_options=[], AxisOption=make)
    loaded = [SimpleNamespace(module=SimpleNamespace()), SimpleNamespace(module=module)]
    assert (plot.add_axes(loaded), plot.add_axes(loaded), len(module.axis_options)) == (4, 0, 4)


# ---- prompts


@given(words)
def test_insertion_is_idempotent_and_reversible(text: str) -> None:
    once = injection.insert(text, TOKEN)
    assert injection.insert(once, TOKEN) == once
    assert injection.insert(once, "fair_ba9876543210") == injection.insert(text, "fair_ba9876543210")
    assert TOKEN in once and TOKEN not in injection.strip(once)
    if "AND" not in text:
        assert injection.strip(once) == text.strip()


def test_prompts_without_our_words_are_untouched() -> None:
    for text in ("  a fair_face, fair_0123  ", "fair_0123456789abc", "<lora:fair:1> x", ""):
        assert injection.strip(text) == text


def test_every_part_of_a_composed_prompt_is_conditioned() -> None:
    text = injection.insert("a cat AND a dog :0.5 AND WAND", TOKEN)
    assert text == f"{TOKEN} a cat AND {TOKEN} a dog :0.5 AND {TOKEN} WAND"


def test_visible_words_are_taken_out_again() -> None:
    files = injection.NativeFiles(TOKEN, TOKEN)
    text = injection.insert("a nurse", injection.visible_words(files))
    assert text == f"{TOKEN} <lora:{TOKEN}:1> a nurse"
    pasted = {"Prompt": text, "Negative prompt": f"{TOKEN} blurry", "Steps": 20}
    infotext.clean_pasted(pasted)
    assert pasted == {"Prompt": "a nurse", "Negative prompt": "blurry", "Steps": 20}


def test_native_files_are_named_by_content(tmp_path: Path) -> None:
    adapter = make_adapter()
    store = injection.NativeStore(tmp_path / "embeddings", tmp_path / "Lora", keep=2)
    foreign = store.embeddings / "fair_mine.safetensors"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"x")
    names = []
    for share in (60, 70, 80):
        files = store.materialise(adapter, adapter.at(f"gender={share}/{100 - share}"))
        assert files.fresh and files.token == files.lora and files.embedding_path is not None
        names.append(files.token)
    assert len(set(names)) == 3
    assert not store.materialise(adapter, adapter.at("gender=80/20")).fresh
    assert {p.stem for p in store.loras.iterdir()} == set(names[1:])
    os.utime(store.loras / f"{names[2]}.safetensors", (0, 0))
    store.materialise(adapter, adapter.at("gender=80/20"))  # used last, so it is the other one that goes
    store.materialise(adapter, adapter.at("gender=90/10"))
    assert names[2] in {p.stem for p in store.loras.iterdir()}
    assert foreign.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "embeddings").write_text("a file")
    store = injection.NativeStore(tmp_path / "embeddings", tmp_path / "Lora")
    with pytest.raises(FairAdapterError, match="expected a folder that can be written to"):
        store.materialise(make_adapter(), make_adapter().at())


# ---- parameters


@given(st.integers(0, 1000), st.integers(1, 98))
def test_readable_targets_read_back_as_the_target(female: int, black: int) -> None:
    text = f"gender={female / 10}/{(1000 - female) / 10};race={99 - black}/{black}/1"
    target = TargetDistribution.parse(text)
    short = infotext.readable(target)
    assert abs(TargetDistribution.parse(short).probabilities - target.probabilities).max() < 1e-6
    assert len(short) < 80


def test_thirds_and_joint_targets_are_readable() -> None:
    assert infotext.readable(TargetDistribution.uniform([RACE])) == "race=wmelh:33.3,black:33.3,asian:33.3"
    joint = TargetDistribution.parse("gender*race=female*black:30,male*asian:70")
    assert TargetDistribution.parse(infotext.readable(joint)) == joint


def test_parameters_describe_and_restore_a_request() -> None:
    request = FairRequest(True, "a, b.safetensors", "gender=50/50", 0.7, "in the prompt")
    entries = infotext.describe(request, "gender=female:50,male:50", "0123456789ab")
    assert list(entries) == ["Fair adapter", "Fair target", "Fair strength", "Fair hash", "Fair tokens"]
    assert infotext.is_on(entries) and infotext.pasted_place(entries) == "in the prompt"
    assert infotext.pasted_target(entries) == "gender=female:50,male:50"
    assert not infotext.is_on({}) and infotext.pasted_place({}) is infotext.pasted_target({}) is None
    assert infotext.describe(FairRequest(True)) == {"Fair adapter": "None"}


def test_settings_of_a_wrong_kind_keep_their_defaults() -> None:
    assert read_options(lambda name: None) == FairOptions()
    assert {o.name: o.default for o in OPTIONS} == asdict(FairOptions())
    given = {"fair_live_every": 5.0, "fair_live_decoder": "magic", "fair_panel": "no", "fair_certain": 1}
    assert read_options(given.get) == replace(FairOptions(), live_every=5, certain=1.0)


# ---- records


def test_records_are_filtered_counted_and_reset(tmp_path: Path) -> None:
    store = records.RecordStore(tmp_path / "data" / "statistics.sqlite")
    assert (store.count(), store.statistics().pictures, store.choices("adapter")) == (0, 0, [])
    row = records.PictureRecord("a 100% nurse", [FACE], 7, "x.safetensors", model="portrait")
    store.add([row, replace(row, prompt="a doctor", faces=[]), replace(row, adapter="None")])
    chosen = records.RecordFilter(prompt="100%", adapter="x.safetensors")
    assert store.count(chosen) == 1 and store.count(records.RecordFilter(prompt="%")) == 2
    statistics = store.statistics()
    assert (statistics.pictures, statistics.without_face) == (3, 1)
    assert statistics.counts("gender") == {"female": 2, "male": 0}
    assert statistics.groups == 2
    assert store.choices("adapter") == ["None", "x.safetensors"] and store.choices("prompt; DROP") == []
    assert (store.reset(chosen), store.count()) == (1, 2)
    assert (store.path.parent / ".gitignore").read_text() == "*\n"


def test_csv_is_safe_to_open_in_a_spreadsheet(tmp_path: Path) -> None:
    store = records.RecordStore(tmp_path / "s.sqlite")
    store.add([records.PictureRecord('=HYPERLINK("x"), "quoted"', [FACE])])
    head, row = store.to_csv().splitlines()
    assert head.endswith("faces,gender,gender_confidence")
    assert "\"'=HYPERLINK(" in row and row.endswith("1,female,0.9100")
    store.reset()
    store.add([records.PictureRecord("", target="", model="")])
    assert "'" not in store.to_csv(), "an empty text stays empty"
    assert [records._cell(v) for v in ("", "-1", "＝x", "a=b", -1, 0.5)] == [
        "",
        "'-1",
        "'＝x",
        "a=b",
        -1,
        0.5,
    ]


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "statistics.sqlite"
    path.write_bytes(b"no database at all" * 100)
    for act in (records.RecordStore(path).statistics, lambda: records.RecordStore(path).add([])):
        with pytest.raises(FairAdapterError, match=r"statistics\.sqlite: expected .* move the file away"):
            act()
    path.unlink()
    store = records.RecordStore(path)
    store.add([records.PictureRecord("x", [FACE])])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE pictures SET faces = '[{}]', labels = NULL")  # as an earlier version adds it
    for act in (store.statistics, store.to_csv):
        with pytest.raises(FairAdapterError, match="reset the statistics"):
            act()


# ---- HTML


def test_nothing_from_outside_becomes_markup() -> None:
    evil = '<img src=x onerror="alert(1)">'
    summary = AdapterSummary(
        evil, 10, title=evil, description=evil, base=evil, architecture=evil, target=evil, kind=evil,
        licence=evil, author=evil, evaluation={"original": {evil: {"bias": 0.5, "ci95": [evil, 1]}}},
    )  # fmt: skip
    statistics = FairnessStatistics()
    statistics.add([[FACE]], evil)
    tile = (Image.new("RGB", (8, 8)), [FACE], evil)
    pages = [
        views.adapter_card(summary), views.library_table([summary, AdapterSummary(evil, 1, error=evil)]),
        views.message([evil]), views.panel(statistics, [tile], evil, [evil]),
    ]  # fmt: skip
    for page in pages:
        assert "<img src=x" not in page and "&lt;img" in page


def test_panel_says_what_is_in_the_pictures() -> None:
    statistics = FairnessStatistics()
    statistics.add([[FACE], []])
    tile = Image.new("RGB", (8, 8))
    page = views.panel(statistics, [(tile, [FACE], ""), (tile, [], "")], "heading")
    assert "1 of 2 pictures with a face" in page and "female 0.91" in page and "no face" in page
    assert "nobody&#x27;s identity" in page or "nobody's identity" in page


def test_bias_table_is_what_the_trainer_measured() -> None:
    evaluation = {"original": {"gender_x_race": {"bias": 0.512, "ci95": [0.4, 0.6], "floor": 0.2}},
                  "adapter": {"gender_x_race": {"bias": 0.25}}}  # fmt: skip
    page = views.evaluation_table(evaluation)
    for text in ("gender x race", "0.51 [0.40, 0.60]", "0.25", "0.20"):
        assert text in page
    assert "no measurement" in views.evaluation_table({})


# ---- routes


class App:
    """Keeps what is registered."""

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {}

    def add_api_route(self, path: str, endpoint: Any, methods: list[str]) -> None:
        assert methods == ["GET"]
        self.routes[path] = endpoint


def ask(app: App, path: str, header: str = "", **query: str) -> Any:
    request = SimpleNamespace(headers={"authorization": header} if header else {}, query_params=query)
    return json.loads(app.routes[path](request).body)


@pytest.fixture
def service(tmp_path: Path) -> FairService:
    make_adapter(FIXED).write(tmp_path / "adapters" / "tiny.safetensors")
    return FairService([tmp_path / "adapters"], tmp_path / "data")


def test_routes_ask_for_the_hosts_password(service: FairService) -> None:
    fastapi = pytest.importorskip("fastapi")
    app = App()
    routes.register(app, service, "anna:secret:with colon,bob:x")
    for user in ("anna:secret", "anna:", "eve:secret", "bob", ":"):
        with pytest.raises(fastapi.HTTPException) as caught:
            ask(app, "/fair-adapter/live", "Basic " + base64.b64encode(user.encode()).decode())
        assert caught.value.status_code == 401
    for header in ("", "Bearer x", "Basic ===", "Basic \xff"):
        with pytest.raises(fastapi.HTTPException):
            ask(app, "/fair-adapter/adapters", header)
    good = "Basic " + base64.b64encode(b"anna:secret:with colon").decode()
    assert ask(app, "/fair-adapter/live", good) == {"active": False}


def test_messages_that_are_passed_on_name_no_folder(service: FairService) -> None:
    (folder, _) = service.library.folders
    (folder / "damaged.safetensors").write_bytes(b"x" * 20)
    summary = service.library.summary("damaged")
    assert str(folder) in summary.error
    assert service.public(summary.error).startswith("damaged.safetensors: expected")
    answers = json.dumps([routes.Api(service).adapters(), routes.Api(service).adapter("damaged")])
    assert "damaged.safetensors: expected" in answers and str(folder) not in answers


def test_routes_are_read_only_and_say_what_is_wrong(service: FairService) -> None:
    fastapi = pytest.importorskip("fastapi")
    app = App()
    routes.register(app, service)
    assert {path.split("/")[1] for path in app.routes} == {"fair-adapter"}
    (row,) = (r for r in ask(app, "/fair-adapter/adapters")["adapters"] if r["name"] == "tiny.safetensors")
    assert row["layers"] == 2
    assert ask(app, "/fair-adapter/last", tab="nonsense") == {"tab": "nonsense", "result": None}
    for query, code in (({"name": "../x"}, 404), ({}, 422)):
        with pytest.raises(fastapi.HTTPException) as caught:
            ask(app, "/fair-adapter/adapter", **query)
        assert caught.value.status_code == code


def test_advice_names_what_does_not_fit(service: FairService) -> None:
    base = make_adapter().info.base
    assert "fair-info" in service.advice("None", "", None)
    assert "tiny-fair" in service.advice("tiny.safetensors", "", base)
    assert "alone: the target has no effect" in service.advice("tiny.safetensors", "gender=90/10", base)
    assert "fair-error" in service.advice("tiny.safetensors", "gender=90", base)
    other = replace(base, architecture="sdxl", name="<big>")
    page = service.advice("tiny.safetensors", "", other)
    assert "fair-error" in page and "&lt;big&gt;" in page


def test_stable_diffusion_3_is_recognised_and_refused(
    service: FairService, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui = ModuleType("modules")
    for name in ("devices", "extra_networks", "paths", "sd_samplers_common", "shared"):
        setattr(webui, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "modules", webui)
    place = "fair_adapter.a1111_extension.host"
    monkeypatch.delitem(sys.modules, place, raising=False)
    host = importlib.import_module(place)
    monkeypatch.delitem(sys.modules, place)
    flags = {"is_sd1": False, "is_sd2": False, "is_sdxl": False, "is_sd3": True}
    checkpoint = SimpleNamespace(name_for_extra="sd3.5_medium")
    base = host.describe_model(SimpleNamespace(**flags, sd_checkpoint_info=checkpoint))
    assert (base.name, base.architecture) == ("sd3.5_medium", "sd3")
    adapter = make_adapter()
    for ours, loaded in ((adapter.info.base, base), (base, adapter.info.base), (base, base)):
        with pytest.raises(FairAdapterError, match="Stable Diffusion 3 work in ComfyUI and diffusers alone"):
            check_base(make_adapter(base=ours), loaded)
    assert "ComfyUI and diffusers alone" in service.advice("tiny.safetensors", "", base)
    assert check_base(adapter, adapter.info.base) == ()
