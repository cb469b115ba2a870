"""Options, state and the loaded model."""

import argparse
import base64
import io
import os
import time
from pathlib import Path

from modules import paths

FORGE = os.environ.get("STANDIN_FORGE") == "1"
# By contract, from Forge Neo's repository and not from a run of it: `State.preview_step`, embeddings below
# the models, `lora_dirs`, no flag and no engine for Stable Diffusion 2, a LoRA's layers not told by file.
NEO = os.environ.get("STANDIN_NEO") == "1"

cmd_opts = argparse.Namespace(
    embeddings_dir=str(Path(paths.models_path if NEO else paths.data_path) / "embeddings"),
    lora_dir=str(Path(paths.models_path) / "Lora"),
    api_auth=os.environ.get("STANDIN_API_AUTH") or None,
    hide_ui_dir_config=False,
    lowvram=False,
    medvram=os.environ.get("STANDIN_MEDVRAM") == "1",
)
if NEO:
    cmd_opts.lora_dirs = []  # more folders, beside lora_dir


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None,
                 section=None, refresh=None):  # fmt: skip
        self.default, self.label, self.component = default, label, component
        self.component_args, self.onchange, self.section = component_args, onchange, section
        self.comment_after = ""

    def info(self, text):
        self.comment_after = text
        return self


class Options:
    def __init__(self):
        self.data = {}
        self.data_labels = {}

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


opts = Options()


class State:
    def __init__(self):
        self.job, self.job_no, self.job_count = "", 0, 0
        self.sampling_step, self.sampling_steps = 0, 0
        self.interrupted = self.skipped = False
        self.current_image, self.current_image_sampling_step = None, 0
        self.current_latent, self.id_live_preview = None, 0
        if NEO:
            self.preview_step = 0
        self.time_start = 0.0

    def begin(self, job="(unknown)"):
        self.__init__()
        self.job, self.time_start = job, time.time()

    def end(self):
        self.job, self.job_count = "", 0

    def interrupt(self):
        self.interrupted = True

    def skip(self):
        self.skipped = True

    def assign_current_image(self, image):
        self.current_image = image
        self.id_live_preview += 1

    def set_current_image(self):
        """The host's own preview, unless somebody has shown one for this step."""
        step = getattr(self, "preview_step", self.sampling_step)
        if step - self.current_image_sampling_step >= 5 and self.current_latent is not None:
            from modules import sd_samplers_common

            self.assign_current_image(sd_samplers_common.single_sample_to_image(self.current_latent[0], 1))
            self.current_image_sampling_step = self.sampling_step

    def progress(self):
        image = None
        if self.current_image is not None:
            buffer = io.BytesIO()
            self.current_image.save(buffer, format="JPEG")
            image = base64.b64encode(buffer.getvalue()).decode()
        done = self.sampling_step / self.sampling_steps if self.sampling_steps else 0.0
        names = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "skipped", "interrupted")
        state = {name: getattr(self, name) for name in names}
        return {"progress": done, "state": state, "current_image": image, "textinfo": None}


state = State()
sd_model = None


def load_model():
    global sd_model
    from modules.portrait_model import PortraitModel

    sd_model = PortraitModel(Path(os.environ["STANDIN_PORTRAIT"]), FORGE)
    from modules import textual_inversion

    textual_inversion.attach(sd_model)
