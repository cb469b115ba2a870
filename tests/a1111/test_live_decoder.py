"""What live bars decode with: the model's own VAE where it is small, and never through the host's."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from fair_adapter.a1111_extension.decoder import find_vae, full_decoder
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.vae_copy import CHEAP, is_cheap, own_copy, parts
from fair_adapter.tests.a1111 import lab
from fair_adapter.tests.a1111.conftest import KINDS, host_python
from fair_adapter.tests.a1111.test_hosts import generating, wait_for


@pytest.fixture(scope="module", params=KINDS)
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Server]:
    """A host that is short of memory: --medvram, or Forge, which always moves weights."""
    python = host_python(request.param)
    root = lab.make_installation(tmp_path_factory.mktemp("short") / request.param)
    server = lab.start(python, root, request.param, STANDIN_MEDVRAM="1")
    yield server
    server.stop()


def read_while_sampling(server: lab.Server) -> bool:
    """Whether bars that can be trusted found a face in both pictures before the sampling ended."""
    server.call("/standin/options", {"fair_live_every": 1})
    found: list[bool] = []

    def looked(answers: list[dict]) -> bool:
        state = server.call("/fair-adapter/live")
        if state.get("reliable"):
            found.append(all(state["pictures"]))
        return any(found) or bool(answers)

    fair = {"adapter": "None", "live": True}
    with generating(server, fair, prompt="a portrait of a woman", steps=40, batch_size=2) as answers:
        wait_for(lambda: looked(answers))
        server.call("/sdapi/v1/interrupt", {})
    assert found, "no frame that can be trusted was seen"
    return any(found)


@pytest.mark.a1111
def test_unless_told_otherwise_a_small_vae_is_read_in_full(short: lab.Server) -> None:
    assert read_while_sampling(short)
    short.call("/standin/options", {"fair_live_decoder": "Approx NN"})  # as chosen: made for other latents
    assert not read_while_sampling(short)
    short.call("/standin/options", {"fair_live_decoder": "automatic"})


@pytest.mark.a1111
@pytest.mark.parametrize("decoder", ["automatic", "Full"])
def test_bars_move_no_weights_of_the_host(short: lab.Server, decoder: str) -> None:
    short.call("/standin/options", {"fair_live_decoder": decoder})
    before = len(short.call("/standin/moves"))
    assert read_while_sampling(short)
    moves = short.call("/standin/moves")[before:]
    assert [move["part"] for move in moves] == ["unet", "vae"]  # to sample, and to decode what was sampled
    assert not [move for move in moves if move["thread"] == "fair-adapter-live"]


# ---- the copy


class Vae(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 3, 1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(self.layer(z), scale_factor=8)


class ForgeVae(Vae):
    def process_out(self, z: torch.Tensor) -> torch.Tensor:
        return z * 2 + 1


def host_model(vae: Vae, kind: str) -> SimpleNamespace:
    """The parts of a loaded model that say how its latents become pictures."""
    if kind == "forge":
        return SimpleNamespace(forge_objects=SimpleNamespace(vae=SimpleNamespace(first_stage_model=vae)))
    if kind == "sd3":
        latent_format = SimpleNamespace(process_out=lambda z: z * 2 + 1)
        return SimpleNamespace(first_stage_model=vae, latent_format=latent_format)
    return SimpleNamespace(first_stage_model=vae, scale_factor=torch.tensor(0.5))


@pytest.mark.parametrize("kind", ["a1111", "sd3", "forge"])
def test_a_copy_decodes_as_the_host_does_and_leaves_its_vae_alone(kind: str) -> None:
    vae = ForgeVae() if kind == "forge" else Vae()
    latents = torch.randn(5, 4, 96, 96, generator=torch.Generator().manual_seed(0)) / 4
    assert len(parts(latents)) == 5  # 768 px: one at a time
    unscaled = latents / 0.5 if kind == "a1111" else latents * 2 + 1
    expected = (vae.decode(unscaled) / 2 + 0.5).clamp(0, 1)
    vae.half()
    theirs: list[str] = []
    vae.decode = lambda z: theirs.append(threading.current_thread().name)  # as --medvram does
    model = host_model(vae, kind)
    assert find_vae(model) is vae
    with torch.inference_mode():
        decoded = full_decoder(model, torch.device("cpu"))(latents)
    assert decoded.dtype == torch.float32 and not theirs
    torch.testing.assert_close(decoded, expected, atol=2e-3, rtol=0)  # the weights were halves
    assert all(p.dtype == torch.float16 for p in vae.parameters()) and "decode" in vars(vae)


def test_a_model_that_shows_no_vae_or_no_scale_is_named() -> None:
    with pytest.raises(FairAdapterError, match=r"'Full' needs the model's VAE.*'automatic'"):
        full_decoder(SimpleNamespace(), torch.device("cpu"))
    with pytest.raises(FairAdapterError, match="how latents of SimpleNamespace are scaled"):
        full_decoder(SimpleNamespace(first_stage_model=Vae()), torch.device("cpu"))


def test_small_is_far_below_stable_diffusion_s() -> None:
    with torch.device("meta"):
        assert is_cheap(torch.nn.Linear(CHEAP, 1, bias=False))
        assert not is_cheap(torch.nn.Linear(CHEAP + 1, 1, bias=False))
    copied, dtype = own_copy(Vae().half(), torch.device("cpu"), torch.float16)
    assert dtype == torch.float32 and next(copied.parameters()).dtype == dtype
