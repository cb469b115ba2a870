"""The built-in LoRA extension: top-level module `networks`, as both hosts have it.

Which keys of a file take effect was observed (a1111 and Forge differ in one style); everything else is
passed over in silence, as there.
"""

import re
from pathlib import Path
from types import SimpleNamespace

from modules import extra_networks, shared
from safetensors.torch import load_file

SUFFIXES = {
    "lora_down.weight": "down", "lora_A.weight": "down", "lora_up.weight": "up", "lora_B.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up", "alpha": "alpha",
}  # fmt: skip
DOTTED = re.compile(
    r"text_encoder\.(text_model\..+)\.(lora_[AB]\.weight|lora_linear_layer\.(?:down|up)\.weight)"
)
loaded_networks = []
_originals = {}


def layer_names(model):
    """Name in a LoRA file -> module."""
    names = {}
    for path, module in model.unet.named_modules():
        names["lora_unet_" + path.replace(".", "_")] = module
    for path, module in model.encoder.named_modules():
        for prefix in ("lora_te", "lora_te1"):
            names[f"{prefix}_text_model_" + path.replace(".", "_")] = module
    return {name: module for name, module in names.items() if hasattr(module, "weight")}


def split_key(key, forge):
    """(layer, part) of a key that takes effect in this host, or None."""
    dotted = DOTTED.fullmatch(key) if forge else None
    if dotted:
        return "lora_te_" + dotted[1].replace(".", "_"), SUFFIXES[dotted[2]]
    layer, _, suffix = key.partition(".")
    return (layer, SUFFIXES[suffix]) if suffix in SUFFIXES and layer.startswith("lora_") else None


def accepted(tensors, names, forge):
    """layer -> parts of the keys that take effect."""
    found = {}
    for key, value in tensors.items():
        split = split_key(key, forge)
        if split is not None and split[0] in names:
            found.setdefault(split[0], {})[split[1]] = value
    return {layer: parts for layer, parts in found.items() if {"down", "up"} <= set(parts)}


def find_file(name):
    for path in Path(shared.cmd_opts.lora_dir).rglob("*.safetensors"):
        if path.stem == name:
            return path
    return None


def restore():
    for module, weight in _originals.values():
        module.weight.data = weight
    _originals.clear()
    loaded_networks.clear()
    for patcher in forge_patchers().values():
        patcher.lora_patches.clear()
        if shared.NEO:
            patcher.patches.clear()


def forge_patchers():
    """Where Forge keeps the layers of its networks."""
    if not shared.FORGE:
        return {}
    objects = shared.sd_model.forge_objects
    return {"lora_unet": objects.unet, "lora_te": objects.clip.patcher}


def apply(name, te, unet):
    path = find_file(name)
    if path is None:
        print(f"Couldn't find network with name {name}")
        return
    names = layer_names(shared.sd_model)
    layers = accepted(load_file(str(path)), names, shared.FORGE)
    for layer, parts in layers.items():
        module = names[layer]
        _originals.setdefault(layer.replace("lora_te1", "lora_te"), (module, module.weight.data))
        down, up = parts["down"].float(), parts["up"].float()
        scale = float(parts.get("alpha", len(down))) / len(down)
        strength = te if layer.startswith("lora_te") else unet
        module.weight.data = module.weight.data + strength * scale * (up @ down).reshape(module.weight.shape)
    for prefix, patcher in forge_patchers().items():
        mine = {layer: parts for layer, parts in layers.items() if layer.startswith(prefix)}
        if shared.NEO:
            patcher.patches.update(mine)
        else:
            patcher.lora_patches[(str(path), te, 1.0, False)] = mine
    loaded_networks.append(SimpleNamespace(name=name, modules={} if shared.FORGE else layers))


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("lora")

    def activate(self, p, params_list):
        restore()
        for params in params_list:
            te = float(params.items[1]) if len(params.items) > 1 else 1.0
            unet = float(params.items[2]) if len(params.items) > 2 else te
            apply(params.items[0], te, unet)
        if params_list:
            names = ", ".join(f"{params.items[0]}: 0123456789ab" for params in params_list)
            p.extra_generation_params["Lora hashes"] = names

    def deactivate(self, p):
        """Observed: errors are reported here; the layers stay as they are until the next activation."""


def register():
    extra_networks.register_extra_network(ExtraNetworkLora())
