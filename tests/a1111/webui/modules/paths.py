"""Folders of this installation, and what is only true of one as people have it."""

import os
from pathlib import Path

data_path = os.environ["STANDIN_ROOT"]
models_path = str(Path(data_path) / "models")
script_path = data_path

# A whole installation (tests/a1111/test_installation.py) has a pyproject.toml, as AUTOMATIC1111 has one.
# There the page opens at 512 x 512, which takes minutes a step on a CPU, and raises two errors of its own.
WHOLE = (Path(data_path) / "pyproject.toml").is_file()
DEFAULT_SIZE = 512 if WHOLE else 128
SLOW_STEP = 60.0  # seconds, from 512 x 512 on
