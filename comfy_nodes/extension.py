"""ComfyUI's entry: the list of nodes, the model folder, the routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host, routes
from .nodes_adapter import ApplyAdapter, ExportAdapter, LoadAdapter, SetTarget
from .nodes_faces import CollectStatistics, LiveAttributeBars, ReadFaces
from .nodes_model import LoadPortrait
from .nodes_table import TargetByPrompt
from .nodes_words import DrawAttributes, SessionStatistics


class FairAdapterExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadAdapter,
            SetTarget,
            ApplyAdapter,
            LiveAttributeBars,
            ReadFaces,
            CollectStatistics,
            DrawAttributes,
            SessionStatistics,
            ExportAdapter,
            LoadPortrait,
            TargetByPrompt,
        ]


async def comfy_entrypoint() -> FairAdapterExtension:
    return FairAdapterExtension()


host.register_folder()
routes.register()
