"""Fair Adapter as a ComfyUI custom node pack.

ComfyUI imports this file under a name made from its path, so everything below reaches the rest of the
repository by relative imports. It is also imported outside ComfyUI (by pytest, which sees a package in the
repository root) and then does nothing. No heavy import stands in its way: what a node needs, it imports when
it runs.
"""

from importlib.util import find_spec

if find_spec("comfy_api") is not None:  # ComfyUI's own package: this is its process
    from .comfy_nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./comfy_nodes/web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
