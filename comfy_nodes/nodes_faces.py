"""The nodes that look at faces: while sampling, in finished pictures, over many runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..shared.attributes import TargetDistribution
from ..shared.bars import CERTAIN, FaceBars, draw_faces
from ..shared.classifiers import RULER
from ..shared.errors import FairAdapterError
from ..shared.images import to_pil
from ..shared.live import EVERY, readings_dict
from ..shared.statistics import FairnessStatistics
from ..shared.tensor_file import write_bytes
from . import host, live, texts
from .collection import COLLECTIONS, Batch, statistics_dict
from .schema import Readings, Target, check_choice, known, schema, valid
from .session import SESSION

CHUNK = 8  # pictures read between two looks at the cancel button
FACES = ("largest face", "all faces")
CLASSIFIERS = ("default", "evaluator", f"default{RULER}", f"evaluator{RULER}")
WIDTH = 640  # px of the statistics' picture


class LiveAttributeBars(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LiveBars",
            "Live Attribute Bars",
            "Shows, while a sampler runs, what the faces of the whole batch are becoming. Put it between the "
            "model and any sampler. It never holds the sampler up: a frame that comes too fast is left out.",
            search_aliases=["fair", "live preview", "bars", "attributes"],
            inputs=[
                io.Model.Input("model", tooltip="The model that goes to the sampler."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the previews if it is a small one, such as the portrait model's, or if "
                    "the GPU has room for it.",
                ),
                Target.Input(
                    "target",
                    optional=True,
                    tooltip="Drawn as a line into the shares; skin tone is "
                    "measured where the target names it.",
                ),
                io.Int.Input(
                    "every",
                    default=EVERY,
                    min=1,
                    max=100,
                    tooltip="Steps between two looks; the last step always is one.",
                ),
                known(
                    io.Combo.Input,
                    "decoder",
                    options=list(live.DECODERS),
                    default=live.DECODERS[0],
                    optional=True,
                    tooltip="auto: a small connected VAE, else TAESD from models/vae_approx, else the "
                    "connected VAE if the GPU has 3 GB left, else the latent's colours, too coarse to read. "
                    "vae: the connected one, whatever it costs.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output("watched", display_name="MODEL", tooltip="For the sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, decoder: Any = None) -> bool | str:
        return valid("decoder", decoder, live.DECODERS)

    @classmethod
    def execute(
        cls,
        model: Any,
        every: int,
        vae: Any = None,
        target: TargetDistribution | None = None,
        decoder: str = live.DECODERS[0],
    ) -> io.NodeOutput:
        check_choice("decoder", decoder, live.DECODERS)
        watch = live.Watch(str(cls.hidden.unique_id), every, decoder, vae, target)
        return io.NodeOutput(live.watched(model, watch))


def _output(kind: Any, name: str, shown: str, tooltip: str) -> Any:
    """One value for each of a list of pictures."""
    return kind.Output(name, display_name=shown, tooltip=tooltip, is_output_list=True)


class ReadFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FaceAttributes",
            "Face Attributes",
            "Finds faces and reads gender, race and age off them, as a classifier perceives them: first bar "
            "gender, second race, third age; the height is the confidence.",
            is_output_node=True,
            is_input_list=True,
            search_aliases=["fair", "face", "classify", "bars", "gender", "race", "age"],
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Finished pictures; a batch or a list. Faces are looked for from 5% of the "
                    "shorter side on; rows of many faces and very large pictures are searched part by part.",
                ),
                Target.Input("target", optional=True, tooltip="Shown beside the shares."),
                io.Combo.Input(
                    "faces",
                    options=list(FACES),
                    default=FACES[0],
                    tooltip="The largest face of a picture is what training and the statistics count.",
                ),
                io.Float.Input(
                    "certain",
                    default=CERTAIN,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Readings below this confidence are hatched and marked '?'.",
                ),
                known(
                    io.Combo.Input,
                    "classifier",
                    options=list(CLASSIFIERS),
                    default=CLASSIFIERS[0],
                    optional=True,
                    tooltip="evaluator: independent nets that no training uses, to check the default with. "
                    "+skin_tone: a fourth bar, measured on the skin's pixels.",
                    advanced=True,
                ),
            ],
            outputs=[
                _output(io.Image, "overlay", "with bars", "Copies with boxes and bars."),
                _output(io.Image, "clean", "IMAGE", "The pictures as they came."),
                _output(Readings, "readings", "READINGS", "For Fairness Statistics."),
                _output(io.String, "table", "table", "A line for each face, in Markdown."),
            ],
        )

    @classmethod
    def validate_inputs(cls, faces: Any = None, classifier: Any = None) -> bool | str:
        wrong = (valid("faces", faces, FACES), valid("classifier", classifier, CLASSIFIERS))
        return next((reason for reason in wrong if reason is not True), True)

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        faces: list[str],
        certain: list[float],
        target: Sequence[TargetDistribution | None] = (None,),
        classifier: Sequence[str] = CLASSIFIERS[:1],
    ) -> io.NodeOutput:
        """A list comes whole, so that the panel counts all of its pictures together."""
        check_choice("faces", faces, FACES)
        check_choice("classifier", classifier, CLASSIFIERS)
        inputs = (images, faces, certain, classifier)
        count = max(len(values) for values in inputs)
        rows: list[list[Any]] = [[values[min(i, len(values) - 1)] for values in inputs] for i in range(count)]
        pixels = [host.to_core(row[0]) for row in rows]
        batches = [_read(p, *row[1:]) for p, row in zip(pixels, rows)]
        SESSION.add(batches)
        overlays = [_overlay(p, b) if len(p) else row[0] for p, b, row in zip(pixels, batches, rows)]
        tables = [texts.readings_table(b.readings, [a.name for a in b.attributes]) for b in batches]
        panel = _panel(cls, pixels, batches, target[-1])
        return io.NodeOutput(overlays, [row[0] for row in rows], batches, tables, ui=panel)


def _read(pixels: Tensor, faces: str, certain: float, classifier: str) -> Batch:
    reader = host.reader(classifier).with_options(faces == FACES[1], certain)
    readings: list[list[FaceBars]] = []
    for first in range(0, len(pixels), CHUNK):
        host.stop_if_cancelled()
        readings += reader.read(pixels[first : first + CHUNK])
    return Batch(readings, reader.attributes, _identity(pixels))


def _overlay(pixels: Tensor, batch: Batch) -> Tensor:
    return host.to_comfy([draw_faces(to_pil(p), faces) for p, faces in zip(pixels, batch.readings)])


def _identity(pixels: Tensor) -> str:
    """Of pictures (N, 3, H, W) as they are seen, in 256 levels."""
    levels = pixels.mul(255).round().byte().cpu().contiguous()
    return hashlib.sha256(str(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()


def _panel(
    cls: type[io.ComfyNode],
    pixels: Sequence[Tensor],
    batches: Sequence[Batch],
    target: TargetDistribution | None,
) -> dict[str, Any]:
    """The clean pictures as temporary files, and the readings: the bars are drawn crisp in the browser."""
    readings = [faces for batch in batches for faces in batch.readings]
    shown = readings_dict(readings, batches[0].attributes, target)
    files: list[dict[str, Any]] = []
    for each in (each for each in pixels if len(each)):
        size = {"width": int(each.shape[3]), "height": int(each.shape[2])}
        saved = ui.PreviewImage(each.movedim(1, -1), cls=cls).as_dict()["images"]
        files += [{**file, **size} for file in saved]
    faces = [{**file, "faces": found} for file, found in zip(files, shown["pictures"])]
    statistics = FairnessStatistics(batches[0].attributes)
    statistics.add(readings)
    return {"fair_faces": faces, "fair_shares": [shown["shares"]], "fair_note": [statistics.note()]}


class CollectStatistics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "Statistics",
            "Fairness Statistics",
            "Counts faces over runs until it is reset, and shows their shares against the target with 95% "
            "intervals and what so few faces can say.",
            is_output_node=True,
            search_aliases=["fair", "statistics", "bias", "distribution", "csv"],
            inputs=[
                Readings.Input(
                    "readings", tooltip="From Face Attributes; the largest face of each picture counts."
                ),
                Target.Input("target", optional=True, tooltip="What the shares are compared with."),
                io.String.Input(
                    "collection",
                    default="faces",
                    tooltip="What is counted together, by name; the button on the node resets it.",
                ),
                io.String.Input(
                    "group",
                    default="",
                    tooltip="What the pictures of this run have in common, such as their prompt: the bias is "
                    "measured in each group and averaged.",
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="If not empty, writes CSV and PNG into the output folder under this name.",
                ),
            ],
            outputs=[
                io.Image.Output("chart", display_name="chart", tooltip="Shares, intervals and target."),
                io.String.Output("table", display_name="table", tooltip="The same as a Markdown table."),
                io.String.Output("csv", display_name="CSV", tooltip="The same as CSV."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, collection: str = "", **_: Any) -> int:
        """After a reset the same batch is counted again."""
        return COLLECTIONS.resets(collection)

    @classmethod
    def execute(
        cls,
        readings: Batch,
        collection: str,
        group: str,
        save_as: str,
        target: TargetDistribution | None = None,
    ) -> io.NodeOutput:
        statistics = COLLECTIONS.add(collection, readings, target, group)
        chart = statistics.draw(target, WIDTH)
        table = texts.shares_table(statistics, target)
        csv = statistics.to_csv(target)
        saved = _save(save_as, chart, csv) if save_as.strip() else []
        panel = {"fair_statistics": [{**statistics_dict(collection, statistics, target), "saved": saved}]}
        return io.NodeOutput(host.to_comfy([chart]), table, csv, ui=panel)


def _save(prefix: str, chart: Any, csv: str) -> list[str]:
    """CSV and PNG in the output folder, numbered; their names below it.

    Raises FairAdapterError for a name that leaves the folder or can't be written.
    """
    output = Path(folder_paths.get_output_directory()).resolve()
    folder = (output / prefix.strip()).parent.resolve()
    name = Path(prefix.strip()).name
    if not folder.is_relative_to(output) or name in ("", ".", ".."):
        raise FairAdapterError(
            f"statistics: expected a name below the output folder, found {prefix[:80]!r}; choose a plain name"
        )
    number = 1
    while any((folder / f"{name}_{number:05}{suffix}").exists() for suffix in (".csv", ".png")):
        number += 1
    data = BytesIO()
    chart.save(data, "PNG")
    contents = {".csv": csv.encode("utf-8"), ".png": data.getvalue()}
    saved = []
    for suffix, content in contents.items():
        path = write_bytes(folder / f"{name}_{number:05}{suffix}", content)
        saved.append(path.relative_to(output).as_posix())
    return saved
