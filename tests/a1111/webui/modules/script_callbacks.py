"""Callbacks by name: on_NAME(callback) registers, call(NAME, ...) runs them; a failure is reported."""

import inspect
import sys
import traceback

NAMES = (
    "ui_settings", "ui_tabs", "app_started", "before_ui", "after_component", "before_component",
    "cfg_denoiser", "cfg_denoised", "cfg_after_cfg", "before_image_saved", "image_saved", "infotext_pasted",
    "script_unloaded", "model_loaded",
)  # fmt: skip
registered = {name: [] for name in NAMES}
registrations = []  # for the tests: (name, file, frames, frames of the import system)


def _registrar(name):
    def register(callback, *, name=None, _name=name):
        # Observed: the host looks through the whole stack, with sources, for the file that registers.
        stack = [frame for frame in inspect.stack() if frame.filename != __file__]
        imports = sum(frame.filename.startswith("<frozen importlib") for frame in stack)
        registrations.append((_name, stack[0].filename, len(stack), imports))
        registered[_name].append(callback)

    return register


for _name in NAMES:
    globals()[f"on_{_name}"] = _registrar(_name)


def clear():
    for callbacks in registered.values():
        callbacks.clear()


def call(name, *args):
    results = []
    for callback in registered[name]:
        try:
            results.append(callback(*args))
        except Exception:
            print(f"*** Error executing callback {name}", file=sys.stderr)
            traceback.print_exc()
    return results


class ImageSaveParams:
    def __init__(self, image, p, filename, pnginfo):
        self.image, self.p, self.filename, self.pnginfo = image, p, filename, pnginfo


class CFGDenoiserParams:
    def __init__(self, x, image_cond, sigma, sampling_step, total_sampling_steps, text_cond, text_uncond):
        self.x, self.image_cond, self.sigma = x, image_cond, sigma
        self.sampling_step, self.total_sampling_steps = sampling_step, total_sampling_steps
        self.text_cond, self.text_uncond = text_cond, text_uncond


class CFGDenoisedParams:
    def __init__(self, x, sampling_step, total_sampling_steps, inner_model):
        self.x, self.sampling_step, self.total_sampling_steps = x, sampling_step, total_sampling_steps
        self.inner_model = inner_model


class AfterCFGCallbackParams:
    def __init__(self, x, sampling_step, total_sampling_steps):
        self.x, self.sampling_step, self.total_sampling_steps = x, sampling_step, total_sampling_steps
