"""Which noise schedule a single-file checkpoint was trained on, where the file says so.

Weights look the same whatever they predict, so that finetunes mark themselves by keys that hold no weights:

    v_pred                  the network predicts v (ComfyUI, A1111, Forge, sd-scripts)
    ztsnr                   with it: the schedule was rescaled to zero signal at its end (NoobAI; Lin et al.,
                            "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023)
    edm_vpred.sigma_max     CosXL: v on EDM's continuous noise levels (also edm_vpred.sigma_min)
    edm_mean, edm_std       Playground 2.5: EDM, and latents with a mean and a spread of their own

Sources: ComfyUI, comfy/supported_models.py, `SDXL.model_type` (all of them; ComfyUI looks at none of them in
files of Stable Diffusion 1), and `model_base.BaseModel.state_dict_for_saving`, which writes v_pred; Forge,
backend/loader.py (`guess.ztsnr`, for every family); diffusers, loaders/single_file_utils.py (edm_mean and
edm_std alone). The Stability AI model specification's `modelspec.prediction_type` (sd-scripts) and ComfyUI's
`modelspec.predict_key` say in the metadata what v_pred says.
"""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler

from ...shared.errors import FairAdapterError
from .header import Header

EDM = "edm_"  # beginning of the keys
SPOKEN = ("modelspec.prediction_type", "modelspec.predict_key")
ZERO_SNR = "rescale_betas_zero_snr"
REASON = (
    "trained on EDM's continuous noise levels, where the gradient's weights and the schedulers here, which "
    "need DDPM's ladder of noise, would be wrong; choose a model that predicts the noise or v"
)


def refuse_edm(header: Header) -> None:
    """Raises FairAdapterError for CosXL, Playground 2.5 and whatever else is marked as theirs."""
    found = min((key for key in header.keys if key.startswith(EDM)), default=None)
    if found is not None:
        model = "CosXL" if found.startswith("edm_vpred") else "Playground 2.5"
        raise FairAdapterError(f"{header.path}: found '{found}', the mark of {model}: {REASON}")


def refuse_edm_pipeline(source: object, scheduler: Any, vae: Any) -> None:
    """The same for a diffusers folder, whatever scheduler should take the place of its own."""
    name = type(scheduler).__name__
    if name.startswith("EDM"):
        raise FairAdapterError(f"{source}: found {name}: a model {REASON}")
    if isinstance(vae, AutoencoderKL) and (
        vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None
    ):
        raise FairAdapterError(
            f"{source}: found a VAE whose latents have a mean and a spread of their own, as in "
            "Playground 2.5; choose a model without them"
        )


def marked(header: Header) -> dict[str, Any]:
    """Settings of a diffusers scheduler that the file asks for; empty where it says nothing."""
    spoken = any(header.metadata.get(name, "").lower().startswith("v") for name in SPOKEN)
    settings: dict[str, Any] = {}
    if "v_pred" in header.keys or spoken:
        settings["prediction_type"] = "v_prediction"
    if "ztsnr" in header.keys:
        settings[ZERO_SNR] = True
    return settings


def with_marks(scheduler: Any, header: Header) -> Any:
    """The scheduler as the file asks for it: DDIM where its own class knows no rescaled schedule.

    Raises FairAdapterError for a rescaled schedule of a network that predicts the noise.
    """
    settings = marked(header)
    if not settings:
        return scheduler
    kind, config = type(scheduler), dict(scheduler.config)
    if settings.get(ZERO_SNR):
        if {**config, **settings}.get("prediction_type") != "v_prediction":
            raise FairAdapterError(
                f"{header.path}: found 'ztsnr' without 'v_pred': where no signal is left the noise says "
                "nothing of the picture, so that the file does not say what it predicts; set model.config to "
                "a diffusers folder or hub id whose scheduler does"
            )
        if ZERO_SNR not in inspect.signature(kind).parameters:
            kind, settings["clip_sample"] = DDIMScheduler, False
        if config.get("timestep_spacing", "leading") == "leading":
            settings["timestep_spacing"] = "trailing"  # the others do not begin at the end of the schedule
    return kind.from_config(config, **settings)
