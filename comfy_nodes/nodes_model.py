"""The node that loads the embedded portrait model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .schema import schema


class LoadPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LoadPortrait",
            "Load Portrait Model",
            "The small text-to-image model that comes with Fair Adapter. It draws portraits of 128 x 128 "
            "pixels on any CPU; its world is skewed on purpose. Use it with dpmpp_2m, 20 steps, cfg 2.75.",
            search_aliases=["portrait", "demo model", "fair"],
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The U-Net."),
                io.Clip.Output("clip", display_name="CLIP", tooltip="The text encoder."),
                io.Vae.Output("vae", display_name="VAE", tooltip="The autoencoder, of factor 8."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from . import portrait

        return io.NodeOutput(*portrait.load())
