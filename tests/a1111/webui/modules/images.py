import math
from pathlib import Path

from modules import script_callbacks
from PIL import Image, PngImagePlugin


def save_image(image, folder, basename, p=None, info=None):
    """PNG with the parameters and whatever callbacks add; returns the path."""
    pnginfo = {"parameters": info} if info is not None else {}
    params = script_callbacks.ImageSaveParams(image, p, "", pnginfo)
    script_callbacks.call("before_image_saved", params)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob('*.png'))):05d}-{basename}.png"
    chunks = PngImagePlugin.PngInfo()
    for key, value in params.pnginfo.items():
        chunks.add_text(key, str(value))
    params.image.save(path, pnginfo=chunks)
    image.already_saved_as = str(path)
    script_callbacks.call("image_saved", params)
    return path


def image_grid(images):
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid
