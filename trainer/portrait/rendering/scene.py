"""Builds a person in Blender and renders the picture. Runs in Blender's Python only."""
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bpy
import numpy as np
from mathutils import Vector

from . import clothing, materials, strands, worn
from .assets import Assets, Mesh
from .body import head_frame, shape
from .maps import SIZE, Maps, beard, build, goatee, moustache, scalp
from .plan import Person
from .skin import Painter, recede

_KINDS = ["objects", "meshes", "hair_curves", "materials", "images", "lights", "cameras", "worlds"]


@dataclass(frozen=True)
class Quality:
    """What a picture costs: pixels a side, samples a pixel, light bounces, denoising on or off."""

    size: int = 160
    samples: int = 16
    bounces: int = 2
    denoise: bool = True


def to_blender(v: np.ndarray) -> np.ndarray:
    """y up to z up, (n, 3)."""
    return np.stack([v[:, 0], -v[:, 2], v[:, 1]], 1)


class Studio:
    """Renders one person after another; assets and maps are read once."""

    def __init__(self, assets: Assets, quality: Quality) -> None:
        self.assets, self.quality = assets, quality
        self.maps: Maps = build(assets)
        self.painter = Painter(assets, self.maps)
        self.levels = cache(lambda name, size: materials.strand_levels(assets.picture(name, size)))
        mesh = assets.base
        self.body = np.array(mesh.groups["body"])
        self.quads = np.array([mesh.faces[f] for f in self.body])
        self.corners = np.array([mesh.corners[f] for f in self.body])
        inner = assets.picture("base/textures/mpfb_inside-mouth.jpg", SIZE)[..., 0]
        self.inner = self.maps.sample(inner, assets.base.uv[self.corners].mean(1)) > 0.5
        self.skull_vertices = assets.bone_weight("head") > 0.6
        upper = mesh.vertices[self.quads].mean(1)[:, 1] > 5.9
        self.hairy = np.flatnonzero(upper)
        bpy.ops.wm.read_factory_settings(use_empty=True)
        _configure(quality)

    def render(self, p: Person, path: Path) -> None:
        """Writes the picture of `p` as RGBA PNG."""
        self.clear()
        self.build(p)
        bpy.context.scene.render.filepath = str(path)
        bpy.ops.render.render(write_still=True)

    def clear(self) -> None:
        """Empties the scene; reading the factory settings anew would cost more."""
        for kind in _KINDS:
            bpy.data.batch_remove(list(getattr(bpy.data, kind)))

    def build(self, p: Person) -> None:
        """Lays the person, the camera and the lights out in the scene."""
        rng = np.random.default_rng(p.identity)
        vertices = shape(p, self.assets)
        floor = float(vertices[self.assets.joint("neck"), 1].mean()) - 1.9
        outfit = self.assets.fitted("clothes", p.outfit)
        self._skin(p, vertices, outfit.hides, floor, rng)
        self._clothes(p, vertices, outfit, floor)
        self._face(p, vertices)
        self._hair(p, vertices, rng)
        for name, path, radius, material in worn.pieces(p, vertices, self.assets, head_frame(p), rng):
            _curves(name, path, radius, material)
        target = self._camera(p, vertices, rng)
        _lights(p, target, rng)

    def _skin(self, p: Person, vertices: np.ndarray, hides: np.ndarray, floor: float, rng) -> None:
        hidden = np.zeros(len(vertices), bool)
        hidden[hides] = True
        seen = ~hidden[self.quads].all(1) & (vertices[self.quads, 1].max(1) > floor)
        if p.expression == "open smile":  # overdrawn shapes push the mouth's inside through the lips
            deep = np.setdiff1d(self.quads[self.inner], self.quads[~self.inner])
            vertices = vertices.copy()
            vertices[deep] += 0.2 * (vertices[self.assets.joint("mouth")].mean(0) - vertices[deep])
        else:
            seen &= ~self.inner
        pixels, height = self.painter.paint(p, rng)
        _mesh(
            "body",
            vertices,
            self.quads[seen],
            self.assets.base.uv[self.corners[seen]],
            materials.skin(pixels, height, p.age),
            1,
        )

    def _part(
        self, name: str, kind: str, asset: str, vertices: np.ndarray, material, keep: np.ndarray | None = None
    ) -> None:
        part = self.assets.fitted(kind, asset)
        _polygons(name, part.on(vertices), part.mesh, material, keep)

    def _clothes(self, p: Person, vertices: np.ndarray, outfit, floor: float) -> None:
        where = outfit.on(vertices)
        high = where[:, 1] > floor
        keep = np.array([high[f].any() for f in outfit.mesh.faces])
        rgba = clothing.paint(p, self.assets.picture(f"clothes_{p.outfit}"))
        _polygons("cloth", where, outfit.mesh, materials.cloth(rgba), keep, 1)

    def _face(self, p: Person, vertices: np.ndarray) -> None:
        """Eyes, teeth, brows and lashes."""
        eyes = self.assets.fitted("eyes", "high-poly").mesh
        middle = np.array([eyes.uv[c].mean(0) for c in eyes.corners])
        clear = (middle[:, 0] > 0.85) & (middle[:, 1] < 0.2)
        self._part(
            "eyes",
            "eyes",
            "high-poly",
            vertices,
            materials.eye(self.assets.picture(f"eyes_{p.eyes}", 256)),
            ~clear,
        )
        self._part("cornea", "eyes", "high-poly", vertices, materials.cornea(), clear)
        if p.expression == "open smile":
            teeth = materials.textured(self.assets.picture("teeth", 128), 0.25, (1.25, 1.2, 1.1))
            self._part("teeth", "teeth", "teeth_base", vertices, teeth)
        brow, tint = f"eyebrow{p.brow:03d}", np.array(p.brow_rgb)
        tint = np.minimum(tint * (0.6 if p.hair_colour in ("blond", "white", "grey") else 1.0), 0.3)
        card = materials.hair_card(self.levels(f"eyebrows_{brow}", 256), tint, 0.7)
        self._part("brow", "eyebrows", brow, vertices, card)
        lash = f"eyelashes0{1 + p.identity % 4}"
        if p.slot.gender == "female" or p.identity % 3 == 0:
            card = materials.hair_card(self.levels(f"eyelashes_{lash}", 256), (0.012, 0.009, 0.009), 0.7)
            self._part("lashes", "eyelashes", lash, vertices, card)

    def _roots(self, vertices: np.ndarray, density: np.ndarray, count: int, rng):
        """Random points on the skin by density (SIZE, SIZE): position, normal, density there."""
        faces = self.hairy
        quad = vertices[self.quads[faces]]
        across = np.cross(quad[:, 2] - quad[:, 0], quad[:, 3] - quad[:, 1])
        area = 0.5 * np.linalg.norm(across, axis=1)
        uv = self.assets.base.uv[self.corners[faces]]
        rough = np.max([self.maps.sample(density, uv[:, k]) for k in range(4)], 0)
        chance = area * rough
        tries = rng.choice(len(faces), 2 * count, p=chance / chance.sum())
        a, b = rng.random((2, 2 * count, 1))
        corner = ((1 - a) * (1 - b), a * (1 - b), a * b, (1 - a) * b)
        share = np.stack(corner, 1)  # (2 * count, 4, 1)
        point = (share * quad[tries]).sum(1)
        there = self.maps.sample(density, (share * uv[tries]).sum(1))
        kept = np.flatnonzero(rng.random(2 * count) * rough[tries] < there)[:count]
        normal = strands.unit(across[tries[kept]])
        return point[kept], normal, there[kept]

    def _hair(self, p: Person, vertices: np.ndarray, rng) -> None:
        material = materials.strands(p.hair_rgb)
        style = strands.STYLES.get(p.hair)
        if style is not None:
            root, normal, _ = self._roots(vertices, scalp(self.maps, recede(p)), style.strands, rng)
            skull = vertices[self.skull_vertices]
            frame = head_frame(p)
            _curves("hair", strands.grow(style, root, normal, skull, frame, rng), style.radius, material)
            if style.knot:
                _curves(
                    "knot", strands.knot(style, skull, frame, rng, p.hair == "puff"), style.radius, material
                )
        elif p.hair != "bald":
            card = materials.hair_card(self.levels(f"hair_{p.hair}", 512), p.hair_rgb)
            self._part("cards", "hair", p.hair, vertices, card)
        if p.beard in strands.BEARDS:
            count, length = strands.BEARDS[p.beard]
            lip = moustache(self.maps)
            mask = {"moustache": lip, "goatee": np.maximum(goatee(self.maps), 0.9 * lip)}.get(p.beard)
            mask = np.maximum(beard(self.maps), 0.9 * lip) if mask is None else mask
            root, normal, there = self._roots(vertices, mask, count, rng)
            path = strands.grow_beard(
                root, normal, there, float(rng.uniform(*length)), p.slot.race == "black", rng
            )
            _curves("beard", path, 0.006, materials.strands(p.brow_rgb))

    def _camera(self, p: Person, vertices: np.ndarray, rng) -> np.ndarray:
        """Frames head and shoulders; returns the point it looks at."""
        eyes = to_blender(np.array([vertices[self.assets.joint(f"{s}-eye")].mean(0) for s in "lr"])).mean(0)
        height = float(np.ptp(vertices[self.skull_vertices][:, 1]))
        target = eyes + np.array([0, 0, -0.2]) + rng.normal(0, 0.06, 3) * np.array([1, 0, 1])
        camera = bpy.data.cameras.new("camera")
        camera.sensor_width, camera.lens = 36, 36 * 11.0 / (height * float(rng.uniform(1.3, 1.5)))
        thing = bpy.data.objects.new("camera", camera)
        thing.location = target + np.array([float(rng.normal(0, 0.4)), -11.0, float(rng.normal(0, 0.5))])
        thing.rotation_euler = _towards(thing.location, target)
        bpy.context.scene.collection.objects.link(thing)
        bpy.context.scene.camera = thing
        return target


def _mesh(
    name: str, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, material, level: int = 0
) -> None:
    """A mesh of quads (f, 4) with texture coordinates (f, 4, 2)."""
    used, index = np.unique(faces, return_inverse=True)
    data = bpy.data.meshes.new(name)
    data.vertices.add(len(used))
    data.vertices.foreach_set("co", to_blender(vertices[used]).astype(np.float32).ravel())
    data.loops.add(faces.size)
    data.loops.foreach_set("vertex_index", index.astype(np.int32).ravel())
    data.polygons.add(len(faces))
    data.polygons.foreach_set("loop_start", np.arange(0, faces.size, 4, dtype=np.int32))
    data.uv_layers.new(name="uv").data.foreach_set("uv", uv.astype(np.float32).ravel())
    _link(name, data, material, level)


def _polygons(
    name: str, vertices: np.ndarray, mesh: Mesh, material, keep: np.ndarray | None, level: int = 0
) -> None:
    """A mesh of triangles and quads."""
    faces = range(len(mesh.faces)) if keep is None else np.flatnonzero(keep)
    data = bpy.data.meshes.new(name)
    data.from_pydata(to_blender(vertices), [], [mesh.faces[f] for f in faces])
    corners = np.array([c for f in faces for c in mesh.corners[f]])
    data.uv_layers.new(name="uv").data.foreach_set("uv", mesh.uv[corners].astype(np.float32).ravel())
    _link(name, data, material, level)


def _link(name: str, data, material, level: int) -> None:
    data.polygons.foreach_set("use_smooth", np.ones(len(data.polygons), bool))
    data.materials.append(material)
    data.update()
    data.validate()
    thing = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(thing)
    if level:
        modifier = thing.modifiers.new("smooth", "SUBSURF")
        modifier.levels = modifier.render_levels = level


def _curves(name: str, path: np.ndarray, radius: float, material, taper: float = 0.6) -> None:
    """Strands (n, points, 3)."""
    n, points = path.shape[:2]
    curves = bpy.data.hair_curves.new(name)
    curves.add_curves([points] * n)
    curves.attributes["position"].data.foreach_set(
        "vector", to_blender(path.reshape(-1, 3)).astype(np.float32).ravel()
    )
    thick = np.broadcast_to(radius * (1 - taper * np.linspace(0, 1, points) ** 2), (n, points)).astype(
        np.float32
    )
    curves.attributes.new("radius", "FLOAT", "POINT").data.foreach_set(
        "value", np.ascontiguousarray(thick).ravel()
    )
    curves.materials.append(material)
    bpy.context.scene.collection.objects.link(bpy.data.objects.new(name, curves))


def _towards(location, target):
    return (Vector(target) - Vector(location)).to_track_quat("-Z", "Y").to_euler()


def _area(where, target, size: float, power: float, colour) -> None:
    lamp = bpy.data.lights.new("lamp", "AREA")
    lamp.size, lamp.energy, lamp.color = size, power, colour
    thing = bpy.data.objects.new("lamp", lamp)
    thing.location = where
    thing.rotation_euler = _towards(where, target)
    bpy.context.scene.collection.objects.link(thing)


def _warm(degree: float) -> tuple[float, float, float]:
    """From cold (-1) to warm (1)."""
    return (1 + 0.12 * degree, 1.0, 1 - 0.18 * degree)


def _around(target: np.ndarray, side: float, angle: float, rise: float, distance: float = 9.0) -> np.ndarray:
    a, r = math.radians(side * angle), math.radians(rise)
    return target + distance * np.array([math.sin(a) * math.cos(r), -math.cos(a) * math.cos(r), math.sin(r)])


# key: angle, rise, size, power; fill; rim; world strength; warmth of key and of the world
_SETUPS = {
    "studio": ((40, 32, 4.5, 1150), 400, 550, 0.28, 0.2, 0.0),
    "window": ((70, 15, 6.0, 1300), 230, 250, 0.36, -0.2, -0.3),
    "front": ((12, 22, 6.0, 1100), 300, 350, 0.34, 0.1, 0.0),
    "hard": ((35, 42, 1.2, 1150), 300, 500, 0.30, 0.3, 0.0),
    "overcast": ((20, 65, 9.0, 700), 250, 150, 0.62, -0.3, -0.4),
    "lamp": ((45, 20, 2.5, 1000), 260, 420, 0.32, 1.1, 0.5),
    "sunset": ((60, 14, 2.0, 1350), 300, 700, 0.30, 1.6, -0.5),
}


def _lights(p: Person, target: np.ndarray, rng) -> None:
    (angle, rise, size, power), fill, rim, world, key_warmth, world_warmth = _SETUPS[p.light]
    side, jitter = p.light_side, rng.uniform(-1, 1, 4)
    where = _around(target, side, angle + 10 * jitter[0], rise + 7 * jitter[1])
    _area(where, target, size, power * (1 + 0.15 * jitter[2]), _warm(key_warmth + rng.normal(0, 0.25)))
    _area(
        target + np.array([-side * 8, -6, 0.5]),
        target,
        7,
        fill * (1 + 0.25 * jitter[3]),
        _warm(rng.normal(-0.1, 0.3)),
    )
    _area(
        target + np.array([-side * 5, 7, 5]),
        target,
        3,
        rim * float(rng.uniform(0.4, 1.2)),
        _warm(rng.normal(0, 0.4)),
    )
    sky = bpy.data.worlds.new("world")
    sky.use_nodes = True
    sky.node_tree.nodes["Background"].inputs["Color"].default_value = (*_warm(world_warmth), 1)
    sky.node_tree.nodes["Background"].inputs["Strength"].default_value = world
    bpy.context.scene.world = sky


def _configure(quality: Quality) -> None:
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device, cycles.samples, cycles.seed = "CPU", quality.samples, 1
    cycles.use_denoising = quality.denoise
    cycles.denoiser, cycles.denoising_prefilter, cycles.denoising_quality = "OPENIMAGEDENOISE", "FAST", "FAST"
    cycles.max_bounces, cycles.transparent_max_bounces = quality.bounces, 10
    cycles.use_adaptive_sampling = False
    cycles.caustics_reflective = cycles.caustics_refractive = False
    scene.cycles_curves.shape = "RIBBONS"
    scene.render.resolution_x = scene.render.resolution_y = quality.size
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    settings = scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth, settings.compression = (
        "PNG",
        "RGBA",
        "8",
        30,
    )
    scene.view_settings.view_transform, scene.view_settings.look = "Filmic", "Medium High Contrast"
    scene.view_settings.exposure = 0.0
