"""An extension whose script runs after ours: it writes the prompts again, as wildcard extensions do, and
puts another picture in the place of each, as those do that sharpen or upscale."""

from modules import scripts
from PIL import Image


class Later(scripts.Script):
    def title(self):
        return "Later"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if "__later__" in p.prompt:
            p.all_prompts = [p.prompt.replace("__later__", "evening")] * len(p.all_prompts)

    def postprocess_image_after_composite(self, p, pp, *args):
        if "__later__" in p.prompt:
            pp.image = Image.merge("RGB", pp.image.split())
