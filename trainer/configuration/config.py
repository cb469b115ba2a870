"""Configuration of training; the defaults are those of the paper (Shen et al., ICLR 2024), but for
`optimizer.clip`: the authors' release does not clip, nor do the presets of the paper's experiments.

    python trainer/train.py trainer/configs/joint.yaml optimizer.lr=1e-4 run.output=runs/mine

Later settings win: these defaults, the file, the command line. `python trainer/train.py --options` lists all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...shared.errors import FairAdapterError
from ...shared.window import Window
from .settings import build, differing, listed, option, plain, read_tree

RESUMABLE = (  # settings that may change between the parts of one run
    "model.name",  # what people call things
    "run.name",
    "run.description",
    "run.author",
    "run.licence",
    "optimizer.iterations",
    "sampling.network_batch",
    "sampling.gradient_batch",
    "sampling.decode_batch",
    "sampling.checkpoint",
    "run.output",
    "run.device",
    "run.save_every",
    "run.sample_every",
    "run.sample_prompts",
    "run.sample_images",
    "run.tensorboard",
    "run.wandb",
    "references.cache",
    "evaluation.",
)


PARTS = ("soft", "soft_target", "lora", "gate")  # of what is trained, which learn at rates of their own
MOST_STEPS = 1000  # of a sampler: models are trained on as many
MOST_SEED = 2**32 - 1  # as in the hosts; times a million it still is a seed of PyTorch
SIZE_STEP = 64  # px: what a U-Net of four levels on latents of 8 px can halve


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    path: str = option(
        "portrait",
        "'portrait', or Stable Diffusion 1, 2, XL or 3, Z-Image, Krea 2: diffusers folder, .safetensors "
        "checkpoint or hub id",
    )
    name: str = option("", "what the adapter file calls it; default: the folder's name")
    config: str | None = option(
        None, "folder or hub id that describes a checkpoint; null: its family's on the hub"
    )
    vae: str | None = option(
        None,
        "VAE in the place of the model's own, or for a file without: .safetensors file, folder or hub id",
    )
    variant: str | None = option(None, "of the files in a folder, such as fp16")
    without: tuple[str, ...] = option(
        (), "text encoders that are left out to save memory: t5xxl of Stable Diffusion 3, 9.5 GB in bfloat16"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "float32",
        "of the frozen weights, what is trained stays float32; auto: bfloat16 if the device computes in it",
    )
    guidance_scale: float | None = option(
        None, "null: on the portrait model's card, or what is usual for the family", least=1
    )
    scheduler: str | None = option(
        None, "of diffusers, such as DPMSolverMultistepScheduler; null: the model's own"
    )
    size: int | None = option(None, "of the pictures in px; null: what the model was made for", least=64)
    encoding: Literal["host", "paper"] = option(
        "host", "host: 77 positions, no mask; paper: as long as the prompt, masked (1.x and 2.x alone)"
    )
    negative: str = option("", "prompt of the unconditional branch")
    # "encoded" is ComfyUI's, and every host's as soon as something stands in the negative prompt, which is
    # usual; "zeros" is for adapters for A1111 and Forge that are used with an empty one.
    empty_negative: Literal["encoded", "zeros"] = option(
        "encoded", "an empty negative prompt of SDXL: encoded as by ComfyUI, zeros as in A1111 and Forge"
    )
    compile: bool = option(False, "torch.compile the U-Net: about twice as fast after a minute or two")
    distilled: bool | None = option(
        None, "guidance is in the weights, as in turbo models; null: what the model says, or false"
    )
    weights: Literal["plain", "int8"] = option(
        "plain", "int8: frozen linear layers in 8 bits by torchao, half the memory of bfloat16"
    )
    revision: str | None = option(None, "of a hub id: branch, tag or commit; null: the newest")


NOTHING_TO_TRAIN = "adapter: nothing to train; set adapter.soft_tokens, .text_lora or .unet_lora"


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained and where it begins."""

    soft_tokens: int = option(0, "soft prompt: tokens after the start token, 0 for none", least=0, most=75)
    text_lora: bool = option(False, "LoRA on attention and MLP of the text encoder")
    unet_lora: bool = option(False, "LoRA on the attention of the U-Net")
    rank: int = option(50, "rank of the LoRA", least=1)
    alpha: float | None = option(None, "of the LoRA; null is the rank", above=0)
    initial_words: str | None = option(",", "the soft prompt begins with their embeddings; null draws words")
    negative_tokens: bool = option(False, "soft tokens before the negative prompt too")
    gate_std: float = option(2.0, "spread of the first gates of a target-conditioned LoRA", least=0)
    start: str | None = option(None, "adapter file, of the parts named here, that training goes on from")

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.soft_tokens or self.text_lora or self.unet_lora)


@dataclass(frozen=True)
class TargetConfig:
    """The distribution that the faces should have."""

    text: str = option("gender=50/50", "the target, or the default target of a target-conditioned adapter")
    vector: Literal["cells", "marginals"] | None = option(
        None, "target-conditioned: 'marginals' (independent attributes) or 'cells' (any joint target)"
    )
    range: dict[str, dict[str, tuple[float, float]]] = field(
        default_factory=dict,
        metadata={
            "doc": "target-conditioned: lowest and highest share, {gender: {female: [.1, .9]}}; 'a*b' joint",
            "least": 0,
            "most": 1,
        },
    )
    default_share: float = option(
        0.1, "target-conditioned: share of iterations at the default target", least=0, most=1
    )
    table: str | None = option(
        None, "CSV file that gives each prompt a target of its own (docs/target_tables.md); others take text"
    )


@dataclass(frozen=True)
class PromptSource:
    """A set of prompts and how often it is drawn."""

    set: str = option("occupations_train", "name of a set, or a text or JSON file of prompts or names")
    weight: float = option(1.0, "share of the iterations, relative to the other sets", least=0)
    templates: tuple[str, ...] = option((), "with {} for the name; default: the paper's; drawn in turn")


@dataclass(frozen=True)
class PromptsConfig:
    """What is drawn."""

    train: tuple[PromptSource, ...] = option((PromptSource(),), "sets of training prompts")
    validation: tuple[PromptSource, ...] = option(
        (PromptSource("occupations_validation"),), "sets of the samples while training"
    )


@dataclass(frozen=True)
class FacesConfig:
    """What looks at the faces."""

    classifier: str = option("default", "NAME or NAME:PATH of the attribute classifier")
    detector: Literal["mtcnn", "fixed"] = option(
        "mtcnn", "'fixed': a face in the middle of every image, for models that draw none (benchmarks, tests)"
    )
    bank: str | None = option(
        "model",
        "face bank: a file of trainer/face_bank.py, 'model' (made from the base model), null for none",
    )
    bank_per_cell: int = option(16, "faces of each combination in the bank made from the model", least=1)


@dataclass(frozen=True)
class LossConfig:
    """Weights and thresholds of the loss."""

    confidence: float = option(0.8, "C: least confidence of a dynamic target", least=0, most=1)
    draws: int = option(1000, "class counts drawn for the expected transport", least=1)
    temperature: float = option(
        1.0,
        "of the logits that are aligned; below 1 for a classifier that is often unsure",
        least=0.05,
        most=1,
    )
    apart: tuple[str, ...] = option((), "attributes whose target is transported on its own, such as age")
    semantics: float = option(8.0, "lambda_1 of the image semantics loss; 0 switches it off", least=0)
    changed: dict[str, float] = field(
        default_factory=dict,
        metadata={"doc": "attribute: lambda_2 / lambda_1; .2 where not named", "least": 0, "most": 1},
    )
    changed_face: dict[str, float] = field(
        default_factory=dict,
        metadata={"doc": "attribute: lambda_3 / lambda_2; .2 where not named", "least": 0, "most": 1},
    )
    encoders: tuple[str, ...] = option(("embedded",), "image encoders: embedded, open_clip, dinov2")
    face: float = option(1.0, "lambda_face of the face realism loss; 0 switches it off", least=0)
    certain: float = option(0.9, "least certainty of an original face that is kept", least=0, most=1)


@dataclass(frozen=True)
class SamplingConfig:
    """Rollout and gradient."""

    steps: tuple[int, int] = option(
        (19, 23), "fewest and most steps; drawn for each prompt and noise", least=1, most=MOST_STEPS
    )
    mode: Literal["exact", "official", "direct"] = option("exact", "weights of the adjusted gradient")
    branches: Literal["both", "conditional"] = option("both", "guidance branches that the gradient follows")
    gradient_steps: int = option(0, "random steps of each image that get a gradient; 0 is all", least=0)
    window: tuple[float, float] = option(
        (0.0, 100.0),
        "percent of the sampling in which the adapter acts and is trained",
        least=0,
        most=100,
    )
    network_batch: int = option(32, "images in one call of the network without gradient", least=1)
    gradient_batch: int = option(16, "(image, step) pairs in one call of the network with gradient", least=1)
    decode_batch: int = option(
        24, "images decoded at a time with gradient; if they are all, they are decoded but once", least=1
    )
    checkpoint: Literal["none", "decoder", "all"] = option(
        "none", "gradient checkpointing: less memory, more time; of the decoder, or of the network as well"
    )


@dataclass(frozen=True)
class ReferencesConfig:
    """The original model's images of the same noise."""

    blocks: int = option(
        0, "noise batches of each prompt; their references are kept. 0: new noise each time", least=0
    )
    cache: str | None = option("runs/cache", "folder where references are kept between runs; null: nowhere")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on the adjusted gradient."""

    iterations: int = option(10000, "one prompt each", least=1)
    images: int = option(24, "N: images of one iteration, over all processes", least=1)
    lr: float = option(5e-5, "learning rate", least=0)
    lr_factors: dict[str, float] = field(
        default_factory=dict,
        metadata={"doc": "of soft, soft_target, lora, gate; 1 where not named", "least": 0},
    )
    warmup: int = option(0, "iterations over which the learning rate rises to `lr`", least=0)
    cooldown: float = option(
        0.0, "share of the iterations over which it falls to 0 at the end", least=0, most=1
    )
    betas: tuple[float, float] = option(
        (0.9, 0.999), "decays of AdamW's mean and mean square", least=0, below=1
    )
    weight_decay: float = option(1e-2, "AdamW's decoupled weight decay", least=0)
    eps: float = option(1e-8, "added to the root of AdamW's mean square", least=0)
    clip: float = option(1.0, "largest gradient norm; 0 switches clipping off", least=0)
    ema: float = option(0.996, "decay of the averaged weights, which are what is exported", least=0, most=1)


@dataclass(frozen=True)
class RunConfig:
    """Where and how."""

    name: str = option("fairness adapter", "name of the adapter")
    description: str = option("", "what it does, for those who are given the file")
    author: str = option("", "who made it")
    licence: str = option("", "of the file, such as MIT")
    output: str = option("runs/train", "folder of the adapter, checkpoints, logs and samples")
    seed: int = option(0, "of everything drawn in training", least=0, most=MOST_SEED)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: CUDA where there is one")
    save_every: int = option(50, "iterations between checkpoints", least=1)
    sample_every: int = option(50, "iterations between samples with bars; 0 for none", least=0)
    sample_prompts: int = option(4, "validation prompts of the samples", least=1)
    sample_images: int = option(8, "images of each of these prompts", least=1)
    tensorboard: bool = option(True, "write event files for TensorBoard")
    wandb: str | None = option(None, "project of Weights & Biases to log to as well")


@dataclass(frozen=True)
class EvaluationConfig:
    """How trainer/demo.py, and trainer/evaluate.py with --config, measure the model before and after."""

    prompts: str = option("occupations_test", "set or file of held-out prompts")
    limit: int = option(8, "prompts of it, evenly spread; 0 for all", least=0)
    images: int = option(96, "pictures of each prompt", least=1)
    steps: int = option(20, "steps of the sampler", least=1, most=MOST_STEPS)
    encoders: tuple[str, ...] | None = option(
        None, "image encoders of the similarity, best such as training does not use; null: the loss's own"
    )
    clip: str | None = option(
        None, "CLIP of the similarity to the prompt: open_clip or open_clip_big; null for none"
    )


@dataclass(frozen=True)
class Config:
    """All of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check(self) -> None:
        """Raises FairAdapterError for settings that contradict each other."""
        if self.model.size is not None:
            check_size(self.model.size)
        low, high = self.sampling.steps
        if low > high:
            raise FairAdapterError(f"sampling.steps: expected 1 <= fewest <= most, found {low} and {high}")
        if self.sampling.gradient_steps > low:
            raise FairAdapterError(
                f"sampling.gradient_steps: expected at most the {low} steps of the sampler, found "
                f"{self.sampling.gradient_steps}"
            )
        Window(*self.sampling.window)
        if not self.adapter.trains:
            raise FairAdapterError(NOTHING_TO_TRAIN)
        unknown = [name for name in self.optimizer.lr_factors if name not in PARTS]
        if unknown:
            raise FairAdapterError(
                f"optimizer.lr_factors: expected {', '.join(PARTS[:-1])} or {PARTS[-1]}, found {unknown[0]}"
            )
        if not self.prompts.train or not sum(s.weight for s in self.prompts.train) > 0:
            raise FairAdapterError("prompts.train: expected a set with a positive weight, found none")


def check_size(pixels: int) -> None:
    """Raises FairAdapterError for a side of a picture that has no whole latents."""
    if pixels < SIZE_STEP or pixels % SIZE_STEP:
        raise FairAdapterError(f"model.size: expected a multiple of {SIZE_STEP} px, found {pixels}")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file with `key=value` overrides.

    Raises FairAdapterError for a file that is missing or no YAML, unknown keys and wrong values.
    """
    keys = [name for name, *_ in options()]
    config = build(Config, read_tree(Path(path), overrides), str(path), keys=keys)
    try:
        config.check()
    except FairAdapterError as error:
        raise FairAdapterError(f"{path}: {error}") from error
    return config


def options() -> Iterator[tuple[str, str, str]]:
    """(key, default, what it is) of every setting."""
    return listed(Config())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys in which two plain configurations differ, but for those that a run may change when it goes on.

    A key that is missing in the old one is newer than it and had its default.
    """
    defaults = plain(Config())
    filled = {name: {**section, **old.get(name, {})} for name, section in defaults.items()}
    return [
        f"{key}: {a} was, {b} is asked for"
        for key, a, b in differing(filled, new)
        if not key.startswith(RESUMABLE)
    ]
