"""Forge Neo and reForge by contract: what their repositories say that differs from Forge; neither was run.

Read on 27 November 2026: branch neo of Haoming02/sd-webui-forge-classic, and main of
Panchovix/stable-diffusion-webui-reForge. The stand-in with STANDIN_NEO=1 has what concerns us of Neo.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fair_adapter.a1111_extension.service import FairService, check_base, check_host
from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.a1111 import lab
from fair_adapter.tests.a1111.conftest import host_python, put_adapters
from fair_adapter.tests.a1111.test_hosts import PROMPT, txt2img
from fair_adapter.tests.tiny_adapter import make_adapter

pytestmark = pytest.mark.a1111


def made_for(architecture: str) -> FairnessAdapter:
    base = make_adapter().info.base
    return make_adapter(base=replace(base, name=f"some {architecture}", architecture=architecture))


# ---- in the stand-in


@pytest.fixture(scope="module")
def neo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Server]:
    """The stand-in as Forge Neo, under Forge's gradio, which is Neo's too."""
    root = lab.make_installation(tmp_path_factory.mktemp("neo") / "webui")
    put_adapters(root / "models" / "fair_adapters")
    made_for("sd2").write(root / "models" / "fair_adapters" / "second.safetensors")
    server = lab.start(host_python("forge"), root, "forge", STANDIN_NEO="1")
    yield server
    server.stop()


def test_tokens_and_lora_draw_what_the_exported_files_draw(neo: lab.Server) -> None:
    adapter = FairnessAdapter.read(neo.root / "models" / "fair_adapters" / "random-both.safetensors")
    target, embeddings = "gender=80/20", neo.root / "models" / "embeddings"
    export_adapter(adapter, target, "stock", neo.root / "models" / "Lora", embeddings, overwrite=True)
    neo.call("/standin/reload_embeddings", {})
    stock = txt2img(neo, prompt=f"stock {PROMPT} <lora:stock:1>", enable_hr=True)
    ours = txt2img(neo, {"adapter": "random-both", "target": target}, enable_hr=True)
    assert ours["images"] == stock["images"] != txt2img(neo, enable_hr=True)["images"]
    assert "Fair error" not in ours["infotexts"][0] and "Fair hash" in ours["infotexts"][0]
    assert list((embeddings / "fair_adapters").glob("fair_*.safetensors"))
    assert "Traceback" not in neo.said()


def test_a_kind_of_model_that_neo_lacks_is_said(neo: lab.Server) -> None:
    answer = txt2img(neo, {"adapter": "second"})
    assert "found a webui that does not run Stable Diffusion 2.x" in answer["comments"]
    assert answer["images"] == txt2img(neo)["images"] and "Fair error" in answer["infotexts"][0]


# ---- by itself


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module host.py over `modules` of these tests."""
    webui = ModuleType("modules")
    for name in ("devices", "extra_networks", "paths", "sd_samplers_common", "shared"):
        setattr(webui, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "modules", webui)
    place = "fair_adapter.a1111_extension.host"
    monkeypatch.delitem(sys.modules, place, raising=False)
    module = importlib.import_module(place)
    monkeypatch.delitem(sys.modules, place)
    return module


def test_before_a_model_is_loaded_the_page_says_what_is_missing(tmp_path: Path) -> None:
    made_for("sd2").write(tmp_path / "second.safetensors")
    made_for("z-image").write(tmp_path / "turbo.safetensors")
    data = tmp_path / "data"
    neo, forge = FairService([tmp_path], data, missing=("sd2",)), FairService([tmp_path], data)
    assert "does not run Stable Diffusion 2.x" in neo.advice("second.safetensors", "", None)
    assert "fair-error" not in forge.advice("second.safetensors", "", None)
    for service in (neo, forge):
        page = service.advice("turbo.safetensors", "", None)
        assert "fair-error" in page and "take no embedding by its name; use ComfyUI" in page


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_what_webuis_load_is_not_refused(architecture: str) -> None:
    adapter = made_for(architecture)
    check_host(adapter)
    assert check_base(adapter, adapter.info.base) == ()
    with pytest.raises(FairAdapterError, match="does not run Stable Diffusion"):
        check_base(adapter, adapter.info.base, (architecture,))


def test_engines_say_which_models_there_are(host: Any, tmp_path: Path) -> None:
    host.paths.script_path = str(tmp_path)
    assert host.missing_architectures() == frozenset()  # A1111 and reForge have no such folder
    engines = tmp_path / "backend" / "diffusion_engine"
    engines.mkdir(parents=True)
    (engines / "sd15.py").touch()
    assert host.missing_architectures() == {"sd2"}
    (engines / "sd20.py").touch()
    assert host.missing_architectures() == frozenset()


def test_neos_models_are_told_apart_without_the_flags_that_it_lacks(host: Any) -> None:
    checkpoint = SimpleNamespace(name_for_extra="z_image_turbo")
    flags = {"is_sd1": False, "is_sdxl": False, "is_wan": False, "sd_checkpoint_info": checkpoint}
    found = host.describe_model(SimpleNamespace(**flags))
    assert (found.name, found.architecture) == ("z_image_turbo", "another kind")
    assert host.describe_model(SimpleNamespace(**{**flags, "is_sdxl": True})).architecture == "sdxl"
    with pytest.raises(FairAdapterError, match="found z_image_turbo"):
        check_base(made_for("sdxl"), found)


def test_a_preview_stays_until_the_next_step(host: Any) -> None:
    """Neo draws its own where `preview_step`, one ahead of `sampling_step`, is past the last one shown."""
    shown: list[Any] = []
    state = SimpleNamespace(sampling_step=3, assign_current_image=shown.append)
    host.shared.state = state
    for counted, expected in (({}, 3), ({"preview_step": 4}, 4)):
        vars(state).update(counted)
        host.WebuiHost().show_preview("picture")
        assert state.current_image_sampling_step == expected and shown.pop() == "picture"


def test_layers_are_counted_where_they_are_told_by_file(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """reForge has `patches` alone, Neo an empty `lora_patches` beside it: then nobody says whose they are."""

    def count(**patcher: Any) -> int | None:
        unet = SimpleNamespace(**patcher)
        objects = SimpleNamespace(unet=unet, clip=SimpleNamespace(patcher=unet))
        host.shared.sd_model = SimpleNamespace(forge_objects=objects)
        return host.WebuiHost().matched_layers("mine")

    monkeypatch.setitem(
        sys.modules, "networks", SimpleNamespace(loaded_networks=[SimpleNamespace(name="mine")])
    )
    by_file = {("/x/mine.safetensors", 1.0, 1.0, False): {"a": 1, "b": 2}}
    assert count(lora_patches=by_file) == 4  # of the U-Net and of the text encoder
    assert count(lora_patches={}) == 0  # Forge took none of its layers
    assert count(lora_patches=by_file, patches={}) == 4
    assert count(lora_patches={}, patches={"a": [1]}) is None
    assert count(patches={"a": [1]}) is None
