"""An extension whose script runs after ours and writes the prompts again, as wildcard extensions do."""

from modules import scripts


class Later(scripts.Script):
    def title(self):
        return "Later"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if "__later__" in p.prompt:
            p.all_prompts = [p.prompt.replace("__later__", "evening")] * len(p.all_prompts)
