"""Blender materials of a person. Runs in Blender's Python only."""
# pyright: reportMissingImports=false

from __future__ import annotations

import bpy
import numpy as np


class Nodes:
    """A material's node tree with short names for what this file needs."""

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.tree.nodes.clear()
        self.out = self.add("ShaderNodeOutputMaterial")

    def add(self, kind: str, **inputs):
        node = self.tree.nodes.new(kind)
        for key, value in inputs.items():
            self.set(node.inputs[key.replace("_", " ")], value)
        return node

    def set(self, socket, value) -> None:
        if hasattr(value, "is_output"):
            self.tree.links.new(value, socket)
        else:
            socket.default_value = value

    def image(self, pixels: np.ndarray, data: bool = False):
        """An image texture from rows (h, w, 4) of RGBA in 0..1, top row first."""
        h, w = pixels.shape[:2]
        picture = bpy.data.images.new("picture", w, h, alpha=True, is_data=data)
        picture.pixels.foreach_set(np.ascontiguousarray(pixels[::-1], np.float32).ravel())
        picture.update()
        node = self.add("ShaderNodeTexImage")
        node.image = picture
        return node

    def principled(self, **inputs):
        shader = self.add("ShaderNodeBsdfPrincipled")
        for key, value in inputs.items():
            self.set(shader.inputs[key.replace("_", " ")], value)
        self.tree.links.new(shader.outputs["BSDF"], self.out.inputs["Surface"])
        return self.material


def skin(pixels: np.ndarray, height: np.ndarray, age: float):
    n = Nodes("skin")
    colour = n.image(pixels).outputs["Color"]
    rows = np.repeat(height[..., None], 4, -1)
    rows[..., 3] = 1
    bump = n.add(
        "ShaderNodeBump", Strength=0.5, Distance=0.03, Height=n.image(rows, data=True).outputs["Color"]
    )
    return n.principled(
        Base_Color=colour,
        Roughness=0.5,
        Normal=bump.outputs["Normal"],
        Subsurface_Weight=0.16,
        Subsurface_Radius=(1.0, 0.35, 0.2),
        Subsurface_Scale=0.08,
        Specular_IOR_Level=0.32,
    )


def strand_levels(rgba: np.ndarray) -> np.ndarray:
    """Brightness of an asset's painted strands, about 1, and their alpha: (h, w, 2)."""
    rgba = _bleed(rgba)
    grey = (rgba[..., :3] ** 2.2) @ np.array([0.3, 0.55, 0.15], np.float32)
    solid = rgba[..., 3] > 0.5
    level = np.clip(grey / max(float(grey[solid].mean()), 1e-4), 0.3, 2.5) ** 0.7
    return np.stack([level, rgba[..., 3]], -1)


def hair_card(levels: np.ndarray, colour, roughness: float = 0.6):
    """Painted strands in this person's colour; their alpha cuts them out."""
    rgba = np.empty((*levels.shape[:2], 4), np.float32)
    rgba[..., :3] = np.clip(levels[..., :1] * np.array(colour), 0, 1) ** (1 / 2.2)
    rgba[..., 3] = levels[..., 1]
    n = Nodes("cards")
    image = n.image(rgba)
    return n.principled(
        Base_Color=image.outputs["Color"],
        Alpha=image.outputs["Alpha"],
        Roughness=roughness,
        Specular_IOR_Level=0.22,
    )


def _bleed(rgba: np.ndarray, rounds: int = 6) -> np.ndarray:
    """Spreads colour into the transparent parts, so that no pale rim is filtered in."""
    known = (rgba[..., 3:] > 0.2).astype(np.float32)
    colour = rgba[..., :3] * known
    for _ in range(rounds):
        total, count = colour * known, known.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            total = total + np.roll(colour * known, step, axis)
            count = count + np.roll(known, step, axis)
        fresh = (known < 0.5) & (count > 0)
        colour = np.where(fresh, total / np.maximum(count, 1e-6), colour)
        known = np.maximum(known, fresh.astype(np.float32))
    return np.concatenate([colour, rgba[..., 3:]], -1)


def eye(rgba: np.ndarray):
    """Iris and sclera; the sclera is toned down, pure white looks lit from within."""
    rgba = rgba.copy()
    rgba[..., :3] *= np.where(rgba[..., :3].min(-1, keepdims=True) > 0.5, 0.84, 0.92)
    n = Nodes("eye")
    return n.principled(Base_Color=n.image(rgba).outputs["Color"], Roughness=0.25, Specular_IOR_Level=0.25)


def cornea():
    n = Nodes("cornea")
    mix = n.add("ShaderNodeMixShader", Fac=0.045)
    n.tree.links.new(n.add("ShaderNodeBsdfTransparent").outputs[0], mix.inputs[1])
    n.tree.links.new(n.add("ShaderNodeBsdfGlossy", Roughness=0.05).outputs[0], mix.inputs[2])
    n.tree.links.new(mix.outputs[0], n.out.inputs["Surface"])
    return n.material


def cloth(rgba: np.ndarray):
    n = Nodes("cloth")
    image = n.image(rgba)
    return n.principled(
        Base_Color=image.outputs["Color"],
        Alpha=image.outputs["Alpha"],
        Roughness=0.85,
        Specular_IOR_Level=0.2,
    )


def strands(colour):
    """Hair curves, each a little lighter or darker."""
    n = Nodes("strands")
    ramp = n.add("ShaderNodeValToRGB", Fac=n.add("ShaderNodeHairInfo").outputs["Random"])
    ramp.color_ramp.elements[0].color = (*np.clip(np.array(colour) * 0.6, 0, 0.9), 1)
    ramp.color_ramp.elements[1].color = (*np.clip(np.array(colour) * 1.4 + 0.003, 0, 0.9), 1)
    return n.principled(Base_Color=ramp.outputs["Color"], Roughness=0.45, Specular_IOR_Level=0.25)


def plain(colour, roughness: float, metallic: float = 0.0):
    n = Nodes("plain")
    return n.principled(Base_Color=(*colour, 1), Roughness=roughness, Metallic=metallic)


def textured(rgba: np.ndarray, roughness: float, gain=(1.0, 1.0, 1.0)):
    n = Nodes("textured")
    rgba = rgba.copy()
    rgba[..., :3] = np.minimum(rgba[..., :3] * np.array(gain, np.float32), 1)
    return n.principled(Base_Color=n.image(rgba).outputs["Color"], Roughness=roughness)
