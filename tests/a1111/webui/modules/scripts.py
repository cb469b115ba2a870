"""Extensions' scripts: how they are found, loaded and called.

Observed: scripts/*.py of every extension are executed without a package, with the extension's root first on
sys.path during that time only; a failing hook is reported and the generation goes on.
"""

import importlib.util
import os
import sys
import traceback
from collections import namedtuple
from pathlib import Path

from modules import paths, script_callbacks

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", ["script_class", "path", "basedir", "module"])
scripts_data = []
_current = paths.script_path
hooks_called = []  # for the tests: (hook, title)


def basedir():
    return _current


class Script:
    name = section = group = None
    filename = ""
    args_from = args_to = 0
    alwayson = is_txt2img = is_img2img = False
    infotext_fields = paste_field_names = None
    tabname = "txt2img"

    def title(self):
        raise NotImplementedError

    def show(self, is_img2img):
        return True

    def ui(self, is_img2img):
        return None

    def elem_id(self, item_id):
        title = self.title().lower().replace(" ", "_")
        return f"script_{'img2img' if self.is_img2img else 'txt2img'}_{title}_{item_id}"


HOOKS = (
    "setup", "before_process", "process", "before_process_batch", "after_extra_networks_activate",
    "process_batch", "process_before_every_sampling", "post_sample", "postprocess_batch",
    "postprocess_batch_list", "postprocess_image", "postprocess_maskoverlay",
    "postprocess_image_after_composite", "postprocess", "before_component", "after_component", "before_hr",
)  # fmt: skip


def _nothing(self, *args, **kwargs):
    pass


for _hook in HOOKS:
    setattr(Script, _hook, _nothing)


class PostprocessImageArgs:
    def __init__(self, image, index=0):
        self.image, self.index = image, index


class PostprocessBatchListArgs:
    def __init__(self, images):
        self.images = images


def load_scripts():
    """Load the scripts of every extension; "Reload UI" calls it again."""
    global _current
    scripts_data.clear()
    script_callbacks.call("script_unloaded")
    script_callbacks.clear()
    root = Path(paths.script_path)
    for folder in [root, *sorted((root / "extensions").iterdir())]:
        for path in sorted((folder / "scripts").glob("*.py")):
            _current = str(folder)
            sys.path.insert(0, str(folder))
            try:
                spec = importlib.util.spec_from_file_location(path.name, path)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                for value in list(vars(module).values()):
                    if isinstance(value, type) and issubclass(value, Script) and value is not Script:
                        scripts_data.append(ScriptClassData(value, str(path), str(folder), module))
            except Exception:
                print(f"*** Error loading script: {path.name}", file=sys.stderr)
                traceback.print_exc()
            finally:
                sys.path.remove(str(folder))
                _current = paths.script_path


class ScriptRunner:
    def __init__(self, is_img2img):
        self.is_img2img = is_img2img
        self.alwayson_scripts, self.selectable_scripts = [], []
        self.inputs = [None]
        self.infotext_fields, self.paste_field_names = [], []
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            script.is_txt2img, script.is_img2img = not is_img2img, is_img2img
            visible = script.show(is_img2img)
            if visible is AlwaysVisible:
                script.alwayson = True
                self.alwayson_scripts.append(script)
            elif visible:
                self.selectable_scripts.append(script)

    @property
    def scripts(self):
        return [*self.alwayson_scripts, *self.selectable_scripts]

    def setup_ui(self):
        for script in self.alwayson_scripts:
            script.args_from = len(self.inputs)
            controls = script.ui(self.is_img2img) or []
            self.inputs += controls
            self.infotext_fields += script.infotext_fields or []
            self.paste_field_names += script.paste_field_names or []
            script.args_to = len(self.inputs)
        return self.inputs[1:]

    def title_index(self, title):
        return next((s for s in self.scripts if s.title().lower() == title.lower()), None)

    def __getattr__(self, hook):
        if hook not in HOOKS:
            raise AttributeError(hook)

        def call(p, *args, **kwargs):
            for script in self.alwayson_scripts:
                hooks_called.append((hook, script.title()))
                given = p.script_args[script.args_from : script.args_to] if hasattr(p, "script_args") else ()
                try:
                    getattr(script, hook)(p, *args, *given, **kwargs)
                except Exception:
                    print(f"*** Error running {hook}: {os.path.basename(script.filename)}", file=sys.stderr)
                    traceback.print_exc()

        return call

    def after_component(self, component, **kwargs):
        for script in self.alwayson_scripts:
            script.after_component(component, **kwargs)


scripts_txt2img = scripts_img2img = None


def make_runners():
    global scripts_txt2img, scripts_img2img
    scripts_txt2img, scripts_img2img = ScriptRunner(False), ScriptRunner(True)
