"""The example workflows as data: what stands where and what it is set to. make_workflows.py saves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fair_adapter.tests.comfyui.prompts import KSAMPLER, Prompt, node

OWN_ADAPTER = "your_sd15_adapter.safetensors"  # none is shipped: those that are fit the portrait model alone
FIXED = "portrait_gender_race.safetensors"
ANY = "portrait_any_target.safetensors"
EQUAL = "gender=female:50,male:50;race=equal"
OWN = "sliders or text"
LIVE = """## Live attribute bars
Press **Run** and watch: every third step the whole batch is decoded, read and drawn while the sampler
works. Then move a slider of *Target Distribution* and run again.

Move *strength* to 0 and run again: that is the model without the adapter. Nothing was typed into the prompt,
the *Fair Adapter* node sees to it."""
ON_AND_OFF = """## Adapter on and off, the same noise
Left what the model draws by itself, right the same seeds with the adapter.

The white mark is the target, the thin line the 95% interval. Sixteen faces say little: see *Statistics over
many batches*."""
TARGETS = """## Target sweep
One adapter, one noise, three targets: an adapter that follows targets needs no training for a new one.

Move a slider and run again: only that row is drawn anew."""
STATISTICS = """## Statistics over many batches
Set the number beside **Run** to 10 and press it: every run draws 16 other faces, and the last node counts
them together until you press *reset*.

Watch the intervals shrink. *CSV* and *PNG* save the table and the chart."""
EXPORT = """## Export for everybody
Writes the adapter at this target as a LoRA into `models/loras` and, if it has soft tokens, an embedding into
`models/embeddings`.

Anybody can use them without this pack: *Load LoRA* with both strengths at 1, and the prompt prefix at the
very beginning of the positive prompt. The picture is the same, pixel for pixel. AUTOMATIC1111 and Forge read
the same files."""
WORDS = """## Attributes in words
No adapter: *Draw Attributes* says in every prompt who is drawn, in the counts of an exact batch. The table
`portrait` has the words of this small model's captions; for other models choose `english`, or your own.

*Session Statistics* counts whatever *Face Attributes* reads. Switch `even_out` on and run again with another
prompt: the next twelve make up for what the last hundred lack."""
CHECKPOINT = """## Your own checkpoint
For Stable Diffusion 1.x, 2.x and SDXL. Choose your checkpoint, and in *Load Fair Adapter* an adapter that was
trained for it and lies in `models/fair_adapters`. None comes with the pack: the shipped ones are for the
portrait model. Another architecture is refused with the reason.

For SDXL set the size to 1024 x 1024. For sharp live bars put `taesd_decoder.safetensors` (SDXL:
`taesdxl_decoder.safetensors`) into `models/vae_approx`."""
BY_PROMPT = """## Targets by prompt
A CSV table in `models/fair_adapters` gives each prompt its own target: *pattern, target, source, year*. The
prompt goes to *Target by Prompt* and to the encoder; the first row whose pattern stands in it wins.

Write "cloud painter" or "star baker" into the prompt and run again. "A doctor" has no row and takes the
target of *Target Distribution*. The occupations are invented: bring your own statistics."""
EARLY = """## The adapter in the early steps alone
Left all of the sampling, right its first 40%: *end* of the lower *Fair Adapter*. The noise is the same.

A shorter part keeps more of the model's own picture and moves the shares less: move *end* and run again."""
Place = tuple[tuple[int, int], tuple[int, int], str]  # position, size, title ("" is the node's own)


def prompt_of(who: str) -> str:
    return f"a photo of the face of a {who}, a person"


@dataclass
class Flow:
    """One workflow.  note: position, size, Markdown.  after: what its seeds do after a run.  runs: before the
    picture is taken.  shown: nodes on the thumbnail; none means all."""

    title: str
    nodes: Prompt = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    note: tuple[tuple[int, int], tuple[int, int], str] = ((0, 0), (0, 0), "")
    after: str = "fixed"
    runs: int = 1
    shown: tuple[str, ...] = ()

    def add(
        self,
        key: str,
        kind: str,
        position: tuple[int, int],
        size: tuple[int, int],
        title: str = "",
        /,
        **inputs: Any,
    ) -> None:
        self.nodes[key] = node(kind, **inputs)
        self.places[key] = (position, size, title)

    def sampler(self, name: str, position: tuple[int, int], model: str, seed: int, **inputs: Any) -> None:
        """A KSampler of 300 x 270 and its VAE Decode below, `name` + "0"."""
        x, y = position
        settings = {**KSAMPLER, "seed": seed, "steps": 20, **inputs}
        title = settings.pop("title", "")
        self.add(name, "KSampler", position, (300, 270), title, model=[model, 0], **settings)
        self.add(f"{name}0", "VAEDecode", (x, y + 310), (300, 60), samples=[name, 0], vae=["1", 2])


def adapter(flow: Flow, name: str = FIXED, target: str = EQUAL) -> None:
    """Model, adapter, target and both put together: nodes 1 to 4."""
    flow.add("1", "LoadPortrait", (40, 60), (330, 90))
    flow.add("2", "LoadAdapter", (40, 240), (330, 400), adapter=name)
    flow.add("3", "TargetDistribution", (410, 60), (360, 420), adapter=["2", 0], preset=OWN, text=target)
    links = {"model": ["1", 0], "clip": ["1", 1], "adapter": ["2", 0], "target": ["3", 0]}
    flow.add("4", "Apply", (810, 60), (330, 230), strength=1.0, **links)


def prompts(flow: Flow, who: str, y: int = 420) -> None:
    """Both prompts through the adapter's CLIPs, and the latents: nodes 5 to 7."""
    flow.add(
        "5", "CLIPTextEncode", (810, y), (330, 110), "positive prompt", clip=["4", 1], text=prompt_of(who)
    )
    flow.add("6", "CLIPTextEncode", (810, y + 160), (330, 90), "negative prompt", clip=["4", 2], text="")


def live() -> Flow:
    flow = Flow("Live attribute bars", after="randomize", shown=("8",))
    adapter(flow, ANY)
    prompts(flow, "mechanic")
    flow.add("7", "EmptyLatentImage", (410, 540), (360, 110), width=128, height=128, batch_size=12)
    flow.add("8", "LiveBars", (1180, 60), (410, 640), model=["4", 0], vae=["1", 2], target=["3", 0], every=3)
    flow.sampler("9", (1630, 60), "8", 7, positive=["5", 0], negative=["6", 0], latent_image=["7", 0])
    faces = {"faces": "largest face", "certain": 0.7, "target": ["3", 0]}
    flow.add("11", "FaceAttributes", (1970, 60), (430, 700), images=["90", 0], **faces)
    flow.note = ((410, 750), (730, 210), LIVE)
    return flow


def on_and_off() -> Flow:
    flow = Flow("Adapter on and off, the same noise", shown=("21", "22"))
    adapter(flow)
    prompts(flow, "mechanic")
    flow.add(
        "15",
        "CLIPTextEncode",
        (810, 730),
        (330, 110),
        "prompt, base model",
        clip=["1", 1],
        text=prompt_of("mechanic"),
    )
    flow.add("16", "CLIPTextEncode", (810, 890), (330, 90), "negative, base model", clip=["1", 1], text="")
    flow.add("7", "EmptyLatentImage", (410, 540), (360, 110), width=128, height=128, batch_size=16)
    flow.sampler("9", (1180, 60), "4", 11, positive=["5", 0], negative=["6", 0], latent_image=["7", 0],
                 title="with adapter")  # fmt: skip
    flow.sampler("19", (1180, 500), "1", 11, positive=["15", 0], negative=["16", 0], latent_image=["7", 0],
                 title="base model, the same noise")  # fmt: skip
    faces = {"faces": "largest face", "certain": 0.7, "target": ["3", 0]}
    flow.add("21", "FaceAttributes", (1520, 60), (430, 780), "base model", images=["190", 0], **faces)
    flow.add("22", "FaceAttributes", (1990, 60), (430, 780), "with adapter", images=["90", 0], **faces)
    flow.note = ((40, 790), (730, 200), ON_AND_OFF)
    return flow


def sweep() -> Flow:
    """Three targets of an adapter that follows them."""
    flow = Flow("Target sweep", shown=("35", "45", "55"))
    flow.add("1", "LoadPortrait", (40, 60), (330, 90))
    flow.add("2", "LoadAdapter", (40, 240), (330, 400), adapter=ANY)
    flow.add("7", "EmptyLatentImage", (40, 790), (330, 110), width=128, height=128, batch_size=12)
    for row, female in enumerate((15, 50, 85)):
        y, key = 60 + 700 * row, str(row + 3)
        text, title = f"gender=female:{female},male:{100 - female};race=equal", f"{female}% women"
        asked = {"adapter": ["2", 0], "preset": OWN, "text": text}
        flow.add(key + "0", "TargetDistribution", (410, y), (360, 420), title, **asked)
        links = {"model": ["1", 0], "clip": ["1", 1], "adapter": ["2", 0], "target": [key + "0", 0]}
        flow.add(key + "1", "Apply", (810, y), (330, 230), title, strength=1.0, **links)
        flow.add(key + "2", "CLIPTextEncode", (810, y + 360), (330, 110), "prompt", clip=[key + "1", 1],
                 text=prompt_of("doctor"))  # fmt: skip
        flow.add(
            key + "3", "CLIPTextEncode", (810, y + 520), (330, 90), "negative", clip=[key + "1", 2], text=""
        )
        flow.sampler(key + "4", (1180, y), key + "1", 5, positive=[key + "2", 0], negative=[key + "3", 0],
                     latent_image=["7", 0])  # fmt: skip
        faces = {"faces": "largest face", "certain": 0.7, "target": [key + "0", 0]}
        at = (1520 + 460 * row, 60)  # side by side: the pictures are taller than a row
        flow.add(key + "5", "FaceAttributes", at, (430, 780), title, images=[key + "40", 0], **faces)
    flow.note = ((40, 970), (330, 220), TARGETS)
    return flow


def statistics() -> Flow:
    flow = Flow("Statistics over many batches", after="randomize", runs=4, shown=("11", "12"))
    adapter(flow)
    prompts(flow, "teacher")
    flow.add("7", "EmptyLatentImage", (410, 540), (360, 110), width=128, height=128, batch_size=16)
    flow.sampler("9", (1180, 60), "4", 1, positive=["5", 0], negative=["6", 0], latent_image=["7", 0])
    faces = {"faces": "largest face", "certain": 0.7, "target": ["3", 0]}
    flow.add("11", "FaceAttributes", (1520, 60), (430, 780), images=["90", 0], **faces)
    counted = {"readings": ["11", 2], "target": ["3", 0], "collection": "teachers", "group": "teacher"}
    flow.add("12", "Statistics", (1990, 60), (430, 560), save_as="", **counted)
    flow.note = ((410, 750), (730, 210), STATISTICS)
    return flow


def export() -> Flow:
    flow = Flow("Export for everybody")
    flow.add("2", "LoadAdapter", (40, 60), (330, 400), adapter=FIXED)
    flow.add("3", "TargetDistribution", (410, 60), (360, 420), adapter=["2", 0], preset="as trained", text="")
    flow.add("4", "Export", (810, 60), (340, 260), adapter=["2", 0], target=["3", 0], name="portrait_fair",
             strength=1.0, overwrite=True)  # fmt: skip
    flow.add("5", "PreviewAny", (1190, 60), (280, 110), "LoRA file", source=["4", 0])
    flow.add("6", "PreviewAny", (1190, 260), (280, 110), "prompt prefix", source=["4", 1])
    flow.note = ((810, 440), (660, 190), EXPORT)
    return flow


def checkpoint() -> Flow:
    flow = live()
    flow.title, flow.runs, flow.shown = "Your own checkpoint", 0, ()
    flow.add(
        "1", "CheckpointLoaderSimple", (40, 60), (330, 100), ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"
    )
    flow.nodes["2"]["inputs"]["adapter"] = OWN_ADAPTER
    flow.nodes["5"]["inputs"]["text"] = prompt_of("software developer")
    flow.nodes["7"]["inputs"] |= {"width": 512, "height": 512, "batch_size": 8}
    flow.nodes["9"]["inputs"]["cfg"] = 7.0
    flow.add("12", "SaveImage", (1970, 830), (430, 100), images=["11", 1], filename_prefix="fair")
    flow.note = ((410, 750), (730, 280), CHECKPOINT)
    return flow


def words() -> Flow:
    flow = Flow("Attributes in words", after="randomize", shown=("11", "30"))
    flow.add("1", "LoadPortrait", (40, 60), (330, 90))
    flow.add("3", "TargetDistribution", (40, 240), (360, 420), preset=OWN, text=EQUAL)
    session = {"target": ["3", 0], "last": 100, "even_out": False, "pictures": 12}
    flow.add("40", "Session", (440, 60), (360, 520), **session)
    given = {"target": ["40", 0], "pictures": 12, "seed": 7, "place": "at the marker", "marker": "[person]"}
    given |= {"prompt": prompt_of("[person] mechanic"), "first_picture": 0, "phrases": "portrait"}
    flow.add("30", "DrawAttributes", (840, 60), (360, 620), **given)
    flow.add("5", "CLIPTextEncode", (1240, 60), (330, 110), "positive prompts", clip=["1", 1], text=["30", 0])
    flow.add("6", "CLIPTextEncode", (1240, 220), (330, 90), "negative prompt", clip=["1", 1], text="")
    flow.add("7", "EmptyLatentImage", (1240, 360), (330, 110), width=128, height=128, batch_size=1)
    flow.sampler("9", (1610, 60), "1", 7, positive=["5", 0], negative=["6", 0], latent_image=["7", 0])
    flow.nodes["9"]["inputs"]["seed"] = ["30", 2]
    faces = {"faces": "largest face", "certain": 0.7, "target": ["3", 0]}
    flow.add("11", "FaceAttributes", (1950, 60), (430, 780), images=["90", 0], **faces)
    flow.note = ((40, 720), (760, 230), WORDS)
    return flow


def by_prompt() -> Flow:
    """The prompt's own target, from the shipped table of invented occupations."""
    flow = Flow("Targets by prompt")
    adapter(flow, ANY)
    flow.add(
        "10", "PrimitiveStringMultiline", (40, 800), (330, 130), "prompt", value=prompt_of("moon gardener")
    )
    links = {"adapter": ["2", 0], "default": ["3", 0], "prompt": ["10", 0]}
    flow.add("12", "TargetByPrompt", (410, 540), (360, 420), table="invented_occupations.csv", **links)
    flow.nodes["4"]["inputs"]["target"] = ["12", 0]
    prompts(flow, "moon gardener")
    flow.nodes["5"]["inputs"]["text"] = ["10", 0]
    flow.add("7", "EmptyLatentImage", (810, 740), (330, 110), width=128, height=128, batch_size=12)
    flow.sampler("9", (1180, 60), "4", 7, positive=["5", 0], negative=["6", 0], latent_image=["7", 0])
    faces = {"faces": "largest face", "certain": 0.7, "target": ["12", 0]}
    flow.add("11", "FaceAttributes", (1520, 60), (430, 780), images=["90", 0], **faces)
    flow.note = ((810, 890), (670, 230), BY_PROMPT)
    return flow


def early() -> Flow:
    """The whole of the sampling and its beginning, from the same noise."""
    flow = Flow("The adapter in the early steps alone", shown=("21", "22"))
    adapter(flow)
    prompts(flow, "mechanic")
    links = {"model": ["1", 0], "clip": ["1", 1], "adapter": ["2", 0], "target": ["3", 0]}
    flow.add("14", "Apply", (810, 730), (330, 230), "first 40%", strength=1.0, start=0.0, end=40.0, **links)
    flow.add("15", "CLIPTextEncode", (810, 1090), (330, 110), "positive, first 40%", clip=["14", 1],
             text=prompt_of("mechanic"))  # fmt: skip
    flow.add("16", "CLIPTextEncode", (810, 1250), (330, 90), "negative, first 40%", clip=["14", 2], text="")
    flow.add("7", "EmptyLatentImage", (410, 540), (360, 110), width=128, height=128, batch_size=12)
    flow.sampler("9", (1180, 60), "4", 11, positive=["5", 0], negative=["6", 0], latent_image=["7", 0],
                 title="all steps")  # fmt: skip
    flow.sampler("19", (1180, 730), "14", 11, positive=["15", 0], negative=["16", 0], latent_image=["7", 0],
                 title="first 40%")  # fmt: skip
    faces = {"faces": "largest face", "certain": 0.7, "target": ["3", 0]}
    flow.add("21", "FaceAttributes", (1520, 60), (430, 780), "all steps", images=["90", 0], **faces)
    flow.add("22", "FaceAttributes", (1990, 60), (430, 780), "first 40%", images=["190", 0], **faces)
    flow.note = ((40, 790), (730, 200), EARLY)
    return flow


FLOWS: dict[str, Callable[[], Flow]] = {
    "1_live_attribute_bars": live,
    "2_adapter_on_and_off": on_and_off,
    "3_target_sweep": sweep,
    "4_statistics_over_many_batches": statistics,
    "5_export_for_everybody": export,
    "6_your_own_checkpoint": checkpoint,
    "7_attributes_in_words": words,
    "8_targets_by_prompt": by_prompt,
    "9_early_steps_alone": early,
}
