"""Folders of this installation; the first argument names its root."""

import os
from pathlib import Path

data_path = os.environ["STANDIN_ROOT"]
models_path = str(Path(data_path) / "models")
script_path = data_path
