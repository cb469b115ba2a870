"""The studio's engine and the sliders' arithmetic."""

from pathlib import Path

import pytest
import torch

from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.studio.session import PortraitSession
from fair_adapter.tests.a1111 import adapters

STEPS, SCALE = 4, 2.0


@pytest.fixture(scope="module")
def session() -> PortraitSession:
    return PortraitSession()


def test_session_draws_what_the_trainer_draws(session: PortraitSession) -> None:
    prompts, seeds, seen = ["a nurse", "a doctor"], [3, 4], []
    images = session.sample(
        prompts, seeds, STEPS, SCALE, on_step=lambda step, total, x0: seen.append((step, total, x0))
    )
    torch.testing.assert_close(images, session.model.generate(prompts, seeds, SCALE, STEPS))
    assert [(step, total) for step, total, _ in seen] == [(k, STEPS) for k in range(1, STEPS + 1)]
    # the solver's last step lands on its prediction
    torch.testing.assert_close(session.decode(seen[-1][2]), images, atol=2e-3, rtol=0)


def test_session_takes_an_adapter_off_again(session: PortraitSession) -> None:
    base = session.sample(["a nurse"], [3], STEPS, SCALE)
    typed = session.sample(["engineer engineer engineer engineer a nurse"], [3], STEPS, SCALE)
    weights = adapters.fixed_adapter("engineer", "engineer").at()
    torch.testing.assert_close(session.sample(["a nurse"], [3], STEPS, SCALE, weights), typed)
    both = adapters.random_adapter("both", size=0.2).at()
    assert not torch.equal(session.sample(["a nurse"], [3], STEPS, SCALE, both), base)
    assert torch.equal(session.sample(["a nurse"], [3], STEPS, SCALE), base)
    zero = adapters.random_adapter("both").at(strength=0)
    assert torch.equal(session.sample(["a nurse"], [3], STEPS, SCALE, zero), base)


def test_session_names_the_model_and_its_settings(session: PortraitSession, tmp_path: Path) -> None:
    assert session.base_model().check(adapters.base_model(), "x") == ()
    assert session.defaults()[0] >= 1 and session.defaults()[1] >= 1
    assert PortraitSession(tmp_path).defaults() == (20, 2.0)
    with pytest.raises(FairAdapterError, match="expected a diffusers folder"):
        _ = PortraitSession(tmp_path).model


@pytest.fixture
def service(tmp_path: Path) -> FairService:
    adapters.random_adapter("both").write(tmp_path / "both.safetensors")
    (tmp_path / "a_damaged.safetensors").write_bytes(b"x" * 20)
    return FairService([tmp_path], tmp_path / "data")


def test_sliders_are_linked_and_write_the_target(service: FairService) -> None:
    ui = pytest.importorskip("fair_adapter.a1111_extension.ui", reason="needs gradio")
    assert service.first_choice() == service.first_choice(own=True) == "both.safetensors"
    states = ui.slots(service.attributes("both"), service.target("both", "gender=70/30;race=20/30/50"))
    assert [s["value"] for s in states if s["visible"]] == [70.0, 30.0, 20.0, 30.0, 50.0]
    values = [s["value"] for s in states]
    black = ui.CLASSES + 1  # second attribute, second class
    values[black] = 60.0
    shares, text = ui.moved(service, black, "both", values)
    assert sum(shares) == 100.0 and shares[1] == 60.0
    assert text == "gender=female:70,male:30;race=wmelh:11.4,black:60,asian:28.6"
    assert service.target("both", text) is not None
    assert ui.moved(service, black, "both", values, "AGE = 30/70; gender=10/90")[1] == f"{text};age = 30/70"
    assert ui.moved(service, black, "both", values, "age=30")[1] == text  # does not read


def test_a_slider_leaves_a_joint_target_alone(service: FairService) -> None:
    ui = pytest.importorskip("fair_adapter.a1111_extension.ui", reason="needs gradio")
    text = "gender*race=female*black:30,male*asian:70"
    *shares, after, _, advice = ui.released(service, 0, "both", [80.0] * ui.SLOTS, text)
    assert shares == [30.0, 70.0, *[0.0] * (ui.CLASSES - 2)] and after == text and "joint" in advice


def test_menus_survive_damaged_files(service: FairService) -> None:
    ui = pytest.importorskip("fair_adapter.a1111_extension.ui", reason="needs gradio")
    assert service.attributes("a_damaged") == () and service.presets("a_damaged") == {}
    assert ui.moved(service, 0, "a_damaged", [50.0] * ui.SLOTS) == ([0.0] * ui.CLASSES, "")
    assert not any(state["visible"] for state in ui.slots((), None))


def test_refreshed_menus_keep_a_pasted_name(service: FairService) -> None:
    ui = pytest.importorskip("fair_adapter.a1111_extension.ui", reason="needs gradio")
    for name, kept in (("both", "both.safetensors"), ("both.safetensors",) * 2, ("gone", "None")):
        assert ui.refreshed(service, name)[0]["value"] == kept


def test_menus_start_without_an_adapter_that_fits_no_host(tmp_path: Path) -> None:
    service = FairService([tmp_path], tmp_path / "data")
    assert service.first_choice(own=True) == "None" != service.first_choice()


def test_studio_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    from fair_adapter.studio import studio

    assert studio.main(["--model", str(tmp_path), "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "expected a diffusers folder" in error and error.count("\n") == 1
