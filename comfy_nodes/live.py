"""Live attribute bars while any sampler runs: a wrapper around the sampling of a model's copy.

The wrapper hands each prediction of the clean latent to `shared.live.LiveBars` and passes everything else on.
The worker never touches ComfyUI's progress hooks, nor what moves weights: that would be in the midst of
sampling. Cancel is raised once, by whichever of ComfyUI's layers asks first, so the worker hands it back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import comfy.patcher_extension
import folder_paths
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..shared.attributes import SKIN_TONE, TargetDistribution
from ..shared.classifiers import RULER
from ..shared.drawing import data_url
from ..shared.errors import FairAdapterError
from ..shared.live import RELIABLE_FROM, Cancelled, LiveBars, LiveFrame
from ..shared.switches import OwnNumbers
from ..shared.vae_copy import is_cheap, own_copy, parts
from . import host

EVENT = "fair_adapter.live"
KEY = "fair_adapter_live"
DECODERS = ("auto", "taesd", "vae", "latent colours")
ROOM = 3 << 30  # bytes of GPU memory for a copy of a VAE that is not cheap, its work and the face reader
SAME = 1 + 1e-3  # sigmas that differ by less are the same
TILE = 192  # px of a picture in the browser
PLACES = {"sigmas": 3, "callback": 5}  # among the arguments of ComfyUI's outer_sample
_log = logging.getLogger("fair_adapter")
Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Watch:
    """What a node was set to.  node: its id.  vae: ComfyUI's VAE or None.  decoder: one of DECODERS."""

    node: str
    every: int
    decoder: str
    vae: Any = None
    target: TargetDistribution | None = None

    @property
    def classifier(self) -> str:
        """What reads the faces; the ruler for skin tone joins where the target asks for it."""
        asked = self.target is not None and SKIN_TONE.name in self.target.names
        return f"default{RULER}" if asked else "default"


def watched(model: Any, watch: Watch) -> Any:
    """A copy of the model whose sampling is watched, by KSampler, SamplerCustom and all that go their way."""

    def wrapper(executor: Any, *arguments: Any, **options: Any) -> Any:
        guider = executor.class_obj
        bars = begin(guider.model_patcher, watch)
        if bars is None:
            return executor(*arguments, **options)
        try:
            progress = Progress(bars, guider, argument("sigmas", arguments, options))
            output = executor(*with_offers(progress, arguments, options)[0], **options)
            progress.finish(output)
            return output
        finally:
            bars.close(0.0)  # a frame that waits is still shown, but nothing waits for it

    model = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def begin(patcher: Any, watch: Watch) -> LiveBars | None:
    """Bars for one run of a sampler; None, and a message on the node, if they can't be made."""
    send = host.sender(EVENT)

    def tell(reason: str) -> None:
        send({"node": watch.node, "error": reason})

    try:
        with OwnNumbers():  # a network that is made here takes none from the sampler
            decode, sharp = make_decoder(watch, patcher)
        return LiveBars(
            host.reader(watch.classifier),
            decode,
            lambda frame: send({"node": watch.node, "sharp": sharp, **frame_dict(frame)}),
            every=watch.every,
            reliable_from=RELIABLE_FROM if sharp else math.inf,  # inf: never, whatever the noise
            target=watch.target,
            on_error=tell,
        )
    except Exception as error:  # a preview must never end a generation
        _log.warning("Fair Adapter: %s", error)
        tell(str(error))
        return None


def argument(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """One of outer_sample's arguments, however it was passed; None if it was not."""
    place = PLACES[name]
    return arguments[place] if len(arguments) > place else options.get(name)


def with_offers(
    progress: Progress, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a sampler with its callback extended; later releases may pass more of them."""
    places = list(arguments)
    inner = argument("callback", arguments, options)

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        if inner is not None:
            inner(step, x0, x, total)  # the host's own: progress, preview, cancel
        progress.offer(step, x0, total)

    if len(places) <= PLACES["callback"]:
        options["callback"] = callback
    else:
        places[PLACES["callback"]] = callback
    return tuple(places), options


class Progress:
    """Where a sampler is on its schedule, by the noise of the picture and not by how often it calls.

    dpm_fast reports every third step, dpm_adaptive takes as many as it likes: the schedule's sigmas that lie
    behind are the finished steps. A prediction is reliable once the noise is what the model has at
    RELIABLE_FROM of its whole way, also where a sampler takes a part of the way only.
    """

    def __init__(self, bars: LiveBars, guider: Any, sigmas: Tensor | None) -> None:
        self._bars, self._model = bars, guider.model_patcher.model
        self._sigmas = [] if sigmas is None else sigmas.detach().float().cpu().tolist()
        self._sigma: Tensor | None = None  # of the last prediction
        self._step = 0
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._reliable = float(sampling.percent_to_sigma(RELIABLE_FROM)) * SAME

        def note(executor: Any, x: Tensor, timestep: Tensor, *arguments: Any, **options: Any) -> Any:
            self._sigma = timestep
            return executor(x, timestep, *arguments, **options)

        kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        options = guider.model_options  # a copy that ends with this run
        comfy.patcher_extension.add_wrapper_with_key(kind, KEY, note, options, is_model_options=True)

    def offer(self, step: int, x0: Tensor, total: int) -> None:
        """step: what the sampler counts, from 0.  x0: its prediction.  total: steps of the schedule."""
        if self._sigma is None or not self._sigmas:  # a sampler that goes past ComfyUI's guider
            self._step = min(step + 1, total)
            self._bars.offer(self._step, total, x0)
            return
        sigma = float(self._sigma.max())
        behind = sum(each * SAME >= sigma for each in self._sigmas[:-1])
        last, self._step = self._step, min(max(behind, 1), total)
        if self._step != last:  # steps of its own between two of the schedule
            self._bars.offer(self._step, total, x0, reliable=sigma <= self._reliable)

    def finish(self, output: Tensor) -> None:
        """Show the end where the sampler's last report was before it.  output: as outer_sample returns it."""
        total = len(self._sigmas) - 1
        if 0 < self._step < total:
            x0 = self._model.process_latent_in(output)
            self._bars.offer(total, total, x0, reliable=self._sigmas[-1] <= self._reliable)


def frame_dict(frame: LiveFrame) -> dict[str, Any]:
    """A frame for the browser: its readings, and all pictures side by side as one small JPEG."""
    columns = math.ceil(math.sqrt(len(frame.pictures)))
    width, height = frame.pictures[0].size
    scale = min(1.0, TILE / max(width, height))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = Image.new("RGB", (columns * tile[0], math.ceil(len(frame.pictures) / columns) * tile[1]))
    for index, picture in enumerate(frame.pictures):
        place = (index % columns * tile[0], index // columns * tile[1])
        sheet.paste(picture.resize(tile, Image.Resampling.BILINEAR), place)
    return {**frame.to_dict(), "columns": columns, "sheet": data_url(sheet, "JPEG", quality=80)}


# ---- decoders


def make_decoder(watch: Watch, patcher: Any) -> tuple[Decoder, bool]:
    """Latents of the sampler -> pictures (N, 3, H, W) in [0, 1], and whether they are sharp enough to read.

    "auto" takes the cheapest that is: a connected VAE that is small, else TAESD, else a connected VAE if the
    GPU has room for it, else the latent's colours.
    Raises FairAdapterError for a decoder that was asked for and can't be had.
    """
    latent_format, device = patcher.model.latent_format, host.reading_device()
    auto = watch.decoder == "auto"
    path = taesd_file(latent_format)
    if watch.decoder == "vae" or (auto and watch.vae is not None and is_cheap(watch.vae.first_stage_model)):
        return _in_parts(_vae_decoder(watch.vae, latent_format, device)), True
    if watch.decoder == "taesd" or (auto and path is not None):
        return _in_parts(_taesd_decoder(path, latent_format, device)), True
    if auto and watch.vae is not None and _has_room(device, patcher):
        return _in_parts(_vae_decoder(watch.vae, latent_format, device)), True
    return _in_parts(_colour_decoder(latent_format)), False


def _has_room(device: torch.device, patcher: Any) -> bool:
    """Whether the GPU can hold a copy of a VAE and its work beside all of the model that is sampled."""
    if device.type != "cuda":
        return False
    missing = patcher.model_size() - patcher.loaded_size()
    return management.get_free_memory(device) - missing >= ROOM


def _vae_decoder(vae: Any, latent_format: Any, device: torch.device) -> Decoder:
    if vae is None:
        raise FairAdapterError(
            "live bars: the decoder 'vae' needs a VAE and none is connected; connect the checkpoint's VAE or "
            "choose 'auto'"
        )
    network, dtype = vae.first_stage_model, vae.vae_dtype
    if vae.device.type == "cpu":
        device = vae.device
    else:  # the host moves its own between devices while we would be using it
        network, dtype = own_copy(network, device, dtype)

    def decode(latents: Tensor) -> Tensor:
        samples = latent_format.process_out(latents.float()).to(device, dtype)
        return vae.process_output(network.decode(samples).float())

    return decode


def taesd_file(latent_format: Any) -> str | None:
    """TAESD's decoder for this kind of latent in models/vae_approx, if there is one for pictures."""
    name = getattr(latent_format, "taesd_decoder_name", None)
    if not name or latent_format.latent_channels > 16 or getattr(latent_format, "latent_dimensions", 2) != 2:
        return None
    files = (f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(name))
    found = next(files, None)
    return folder_paths.get_full_path("vae_approx", found) if found else None


def _taesd_decoder(path: str | None, latent_format: Any, device: torch.device) -> Decoder:
    from comfy.taesd.taesd import TAESD

    if path is None:
        name = getattr(latent_format, "taesd_decoder_name", None)
        folder = folder_paths.get_folder_paths("vae_approx")[0]
        raise FairAdapterError(
            f"live bars: the decoder 'taesd' needs {name or 'a TAESD'}.safetensors in {folder}, found none; "
            "put it there or choose 'auto'"
        )
    network = TAESD(None, path, latent_channels=latent_format.latent_channels).to(device)
    return lambda latents: (network.decode(latents.to(device, torch.float32)) / 2 + 0.5).clamp(0, 1)


def _colour_decoder(latent_format: Any) -> Decoder:
    """The linear map of a latent to colours that ComfyUI's own preview draws, enlarged four times."""
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        raise FairAdapterError(
            f"live bars: no decoder for {type(latent_format).__name__} latents; connect a small VAE or put "
            "its TAESD into models/vae_approx"
        )
    matrix = torch.tensor(factors).T  # (3, C)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    offset = None if bias is None else torch.tensor(bias)

    def decode(latents: Tensor) -> Tensor:
        colours = functional.linear(latents.float().cpu().movedim(1, -1), matrix, offset).movedim(-1, 1)
        return functional.interpolate((colours / 2 + 0.5).clamp(0, 1), scale_factor=4, mode="bilinear")

    return decode


def _in_parts(decode: Decoder) -> Decoder:
    """A few pictures at a time, and a cancel that comes up here is the sampler's."""

    def decode_all(latents: Tensor) -> Tensor:
        if latents.dim() != 4:
            raise FairAdapterError(
                f"live bars: expected latents of pictures (N, C, h, w), found {tuple(latents.shape)}; video "
                "and audio models have no bars"
            )
        try:
            images = [decode(part).float().cpu() for part in parts(latents)]
        except management.InterruptProcessingException as error:
            management.interrupt_current_processing(True)  # it was meant for the sampler's thread
            raise Cancelled from error
        return torch.cat(images)

    return decode_all
