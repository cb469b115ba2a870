"""Which decoder live bars take, and a large VAE's copy; there is no GPU, so by what they are told. Cancel."""

import threading
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import torch

GIB = 1 << 30


def decoders(live: Any, vae: Any) -> dict[str, Any]:
    """Name of the case -> "vae" or "colours"."""
    large = SimpleNamespace(first_stage_model=torch.nn.Linear(5000, 5000))
    cases = {  # VAE, where faces are read, free memory, weights of the model that are not loaded yet
        "small on a CPU": (vae, "cpu", 0, 0),
        "none": (None, "cuda", 20 * GIB, 0),
        "large on a CPU": (large, "cpu", 20 * GIB, 0),
        "large on a GPU": (large, "cuda", 4 * GIB, 0),
        "large on a full GPU": (large, "cuda", 2 * GIB, 0),
        "large before the model": (large, "cuda", 4 * GIB, 2 * GIB),
    }
    kept = live._vae_decoder, live.host.reading_device, live.management.get_free_memory
    found = {}
    try:
        live._vae_decoder = lambda *_: "vae"
        for name, (given, device, free, missing) in cases.items():
            live.host.reading_device = lambda device=device: torch.device(device)
            live.management.get_free_memory = lambda _, free=free: free
            patcher = SimpleNamespace(
                model=SimpleNamespace(latent_format=comfy.latent_formats.SD15()),
                model_size=lambda: 3 * GIB,
                loaded_size=lambda missing=missing: 3 * GIB - missing,
            )
            _, sharp = live.make_decoder(live.Watch("1", 1, "auto", given), patcher)
            found[name] = "vae" if sharp else "colours"
    finally:
        live._vae_decoder, live.host.reading_device, live.management.get_free_memory = kept
    return found


@torch.inference_mode()
def copied(live: Any, vae: Any, latent_format: Any) -> dict[str, float | bool]:
    """A VAE that the host keeps on a GPU, decoded on the CPU: in float32, on a copy."""
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 16, 16)
    hosts = SimpleNamespace(
        first_stage_model=vae.first_stage_model,
        vae_dtype=torch.float16,
        device=torch.device("cuda"),
        process_output=vae.process_output,
    )
    mine = live._vae_decoder(hosts, latent_format, torch.device("cpu"))(latents)
    theirs = vae.decode(latent_format.process_out(latents)).movedim(-1, 1)
    kept = all(p.dtype == vae.vae_dtype for p in vae.first_stage_model.parameters())
    return {"difference": float((mine - theirs).abs().max()), "kept": kept}


def cancelled(live: Any, vae: Any, latent_format: Any) -> dict[str, bool]:
    """The user cancels while the worker decodes, which asks ComfyUI before any other thread does."""
    management, at_work, ended, told = live.management, threading.Event(), threading.Event(), []
    decode = live._in_parts(live._vae_decoder(vae, latent_format, torch.device("cpu")))

    def after_cancel(latents: torch.Tensor) -> torch.Tensor:
        management.interrupt_current_processing(True)
        at_work.set()
        try:
            return decode(latents)
        finally:
            ended.set()

    bars = live.LiveBars(None, after_cancel, told.append, every=1, on_error=told.append)
    try:
        bars.offer(1, 9, torch.zeros(1, 4, 16, 16))
        reached = at_work.wait(60) and ended.wait(60)
        bars.close()
        kept = management.processing_interrupted()
    finally:
        management.interrupt_current_processing(False)
    return {"reached": reached, "kept": kept, "silent": told == [] and bars.error is None}
