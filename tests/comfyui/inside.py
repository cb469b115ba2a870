"""What is checked in ComfyUI's own Python, without a server; run by test_inside.py, prints one JSON object.

    python inside.py COMFYUI PACK FOLDER

COMFYUI: its tree.  PACK: the installed pack.  FOLDER: ComfyUI's base folder, with test adapters.
"""

import asyncio
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

comfyui, pack, folder = (Path(argument).resolve() for argument in sys.argv[1:])
sys.argv = ["main.py", "--cpu", "--base-directory", str(folder)]
sys.path.insert(0, str(comfyui))
sys.path += filter(None, os.environ.get("FAIR_ADAPTER_LENT", "").split(os.pathsep))  # after ComfyUI's own
os.chdir(comfyui)

import comfy.options

comfy.options.enable_args_parsing()

import utils.install_util  # noqa: F401  (before nodes.py makes comfy/utils.py the first of that name)

import nodes  # noqa: F401  # isort: skip  (what ComfyUI has loaded when it comes to custom nodes)
import server  # noqa: F401
import torch
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from inside_chain import brought, in_a_row, saved
from inside_language import language
from inside_live import cancelled, copied, decoders
from inside_models import large_models
from inside_routes import counting_threads
from inside_tokens import soft_tokens

HEAVY = (
    "cv2", "diffusers", "facenet_pytorch", "matplotlib", "onnx", "onnxruntime", "open_clip", "ot", "pandas",
    "sklearn", "torchvision",
)  # fmt: skip


def ours(name: str) -> Any:
    """A module of the installed pack, under the name that ComfyUI gives it."""
    return importlib.import_module(f"{pack}.{name}")


def load_pack() -> dict[str, Any]:
    """As ComfyUI does it, schemas included: processor time, and what was loaded that need not be."""
    before, began = set(sys.modules), time.process_time()
    spec = importlib.util.spec_from_file_location(str(pack), pack / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[str(pack)] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    seconds = time.process_time() - began
    loaded = {name.split(".")[0] for name in set(sys.modules) - before}
    return {
        "seconds": seconds,
        "heavy": sorted(loaded & set(HEAVY)),
        "web": (pack / module.WEB_DIRECTORY).is_dir(),
    }


@torch.no_grad()
def portrait(model: Any, clip: Any, vae: Any) -> dict[str, float]:
    """Largest differences from diffusers and transformers on the same weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    files = pack / "shared" / "portrait"
    unet = UNet2DConditionModel.from_pretrained(files / "unet", torch_dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(files / "text_encoder", torch_dtype=torch.float32)
    coder = AutoencoderKL.from_pretrained(files / "vae", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(files / "tokenizer")
    torch.manual_seed(0)
    text = "a portrait of a nurse, a person"
    ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = encoder(ids).last_hidden_state
    noise, times = torch.randn(2, 4, 16, 16), torch.tensor([700.0, 20.0])
    context = hidden.expand(2, -1, -1)
    pairs = {
        "text": (hidden, clip.encode_from_tokens(clip.tokenize(text))),
        "unet": (
            unet(noise, times, context).sample,
            model.model.diffusion_model(noise, times, context=context),
        ),
        "vae": ((coder.decode(noise).sample / 2 + 0.5).clamp(0, 1), vae.decode(noise).movedim(-1, 1)),
        "scale": (noise / coder.config.scaling_factor, model.model.process_latent_out(noise)),
    }
    return {name: float((theirs - mine).abs().max()) for name, (theirs, mine) in pairs.items()}


def key_map(model: Any, clip: Any) -> dict[str, Any]:
    """Every layer of an exported LoRA in ComfyUI's own key map, and taken by its own loader."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    path = folder / "models" / "fair_adapters" / "random.safetensors"
    files = ours("shared.adapter_export").export_adapter(
        ours("shared.adapter").FairnessAdapter.read(path),
        "gender=70/30;race=equal",
        "keys",
        folder / "loras",
        folder / "embeddings",
        overwrite=True,
    )
    lora = comfy.utils.load_torch_file(str(files.lora), safe_load=True)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    names = {key.rsplit(".", 2)[0] for key in lora if key.endswith("lora_up.weight")}
    first, second = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    taken = len(first.patches) + len(second.patcher.patches)
    return {"layers": len(names), "unmatched": sorted(names - set(keys)), "taken": taken}


def read_face() -> list[str]:
    """What is read off a picture with a face, without the package that the detector came from."""
    sys.modules["facenet_pytorch"] = None  # type: ignore[assignment]
    picture = Path(__file__).parents[1] / "data" / "faces" / "female_black_0.jpg"
    ((face,),) = ours("shared.reader").FaceReader().read(ours("shared.images").load_image(picture)[None])
    return [bar.label for bar in face.bars]


found: dict[str, Any] = {"import": load_pack()}
parts = ours("comfy_nodes.portrait").load()
application = ours("comfy_nodes.application")
found["portrait"] = portrait(*parts)
found["widths"] = application.describe(*parts[:2]).widths
found["keys"] = key_map(*parts[:2])
read = (application, ours("shared.adapter"), *parts[:2], folder / "models" / "fair_adapters")
found["in_a_row"], found["saved"] = in_a_row(*read), saved(*read)
found["brought"] = brought({name: ours(f"comfy_nodes.{name}") for name in ("nodes_adapter", "nodes_faces")})
embeddings = folder / "models" / "embeddings"
width = {"clip_l": found["widths"]["clip_l"]}
tokens = ours("comfy_nodes.soft_tokens")
found["tokens"] = {"portrait": soft_tokens(tokens, parts[1].tokenizer, "portrait", width, embeddings)}
for name, (result, tokenizer, widths) in large_models(application, embeddings).items():
    found[name] = result
    found["tokens"][name] = soft_tokens(tokens, tokenizer, name, widths, embeddings)
widths = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
found["tokens"]["sd3"] = soft_tokens(tokens, SD3Tokenizer(str(embeddings)), "sd3", widths, embeddings)
found["language"] = language(application, tokens)
live = ours("comfy_nodes.live")
found["decoders"] = decoders(live, parts[2])
found["copied"] = copied(live, parts[2], parts[0].model.latent_format)
found["cancelled"] = cancelled(live, parts[2], parts[0].model.latent_format)
bars = ours("shared.bars")
person = bars.FaceBars((0, 0, 9, 9), (bars.Bar("gender", "female", 0.9, (0, 0, 0)),))
collection, statistics = ours("comfy_nodes.collection"), ours("shared.statistics")
found["counting"] = counting_threads(ours("comfy_nodes.routes"), collection, statistics, person)
found["read"] = read_face()
print("RESULT " + json.dumps(found))
