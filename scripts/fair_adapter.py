"""Where AUTOMATIC1111 and Forge find Fair Adapter: registers the repository's import name, then hands over.

The host runs this file without a package and takes the folder off sys.path again afterwards; "Reload UI" runs
it again, while modules loaded before would stay as they were.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

for _name in [name for name in sys.modules if name == "fair_adapter" or name.startswith("fair_adapter.")]:
    del sys.modules[_name]
if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

from fair_adapter.a1111_extension.script import FairAdapterScript, register

register()

__all__ = ["FairAdapterScript"]
