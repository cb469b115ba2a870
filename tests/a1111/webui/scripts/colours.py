"""What wildcard extensions do: every picture gets its own prompt, before ours is asked."""

from modules import scripts


class Colours(scripts.Script):
    def title(self):
        return "Colours"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        names = ("red", "blue", "green")
        p.all_prompts = [text.replace("__colour__", names[i % 3]) for i, text in enumerate(p.all_prompts)]
        p.all_hr_prompts = [
            text.replace("__colour__", names[i % 3]) for i, text in enumerate(p.all_hr_prompts)
        ]
