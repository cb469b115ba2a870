"""The nodes that look at faces: while sampling, in finished pictures, over many runs."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..shared.attributes import TargetDistribution
from ..shared.bars import CERTAIN, FaceBars, draw_faces
from ..shared.errors import FairAdapterError
from ..shared.images import to_pil
from ..shared.live import EVERY, readings_dict
from ..shared.statistics import FairnessStatistics
from ..shared.tensor_file import write_bytes
from . import host, live, texts
from .collection import COLLECTIONS, Batch, statistics_dict
from .schema import Readings, Target, known, schema

CHUNK = 8  # pictures read between two looks at the cancel button
FACES = ("largest face", "all faces")
CLASSIFIERS = ("default", "evaluator")
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
                    tooltip="Decodes the previews if it is a small one, such as the portrait model's.",
                ),
                Target.Input("target", optional=True, tooltip="Drawn as a line into the shares."),
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
                    "latent's colours, too coarse to be read. vae: the connected one, whatever it costs.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output("watched", display_name="MODEL", tooltip="For the sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        every: int,
        vae: Any = None,
        target: TargetDistribution | None = None,
        decoder: str = live.DECODERS[0],
    ) -> io.NodeOutput:
        watch = live.Watch(str(cls.hidden.unique_id), every, decoder, vae, target)
        return io.NodeOutput(live.watched(model, watch))


class ReadFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FaceAttributes",
            "Face Attributes",
            "Finds faces and reads gender, race and age off them, as a classifier perceives them: first bar "
            "gender, second race, third age; the height is the confidence.",
            is_output_node=True,
            search_aliases=["fair", "face", "classify", "bars", "gender", "race", "age"],
            inputs=[
                io.Image.Input("images", tooltip="Finished pictures; a batch or a list."),
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
                    tooltip="evaluator: independent nets that no training uses, to check the default with.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output("overlay", display_name="with bars", tooltip="Copies with boxes and bars."),
                io.Image.Output("clean", display_name="IMAGE", tooltip="The pictures as they came."),
                Readings.Output("readings", display_name="READINGS", tooltip="For Fairness Statistics."),
                io.String.Output("table", display_name="table", tooltip="A line for each face, in Markdown."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        faces: str,
        certain: float,
        target: TargetDistribution | None = None,
        classifier: str = CLASSIFIERS[0],
    ) -> io.NodeOutput:
        pixels = host.to_core(images)
        reader = host.reader(classifier).with_options(faces == FACES[1], certain)
        readings: list[list[FaceBars]] = []
        for first in range(0, len(pixels), CHUNK):
            host.stop_if_cancelled()
            readings += reader.read(pixels[first : first + CHUNK])
        batch = Batch(readings, reader.attributes)
        overlay = [draw_faces(to_pil(p), r) for p, r in zip(pixels, readings)]
        drawn = host.to_comfy(overlay) if overlay else images
        table = texts.readings_table(readings, [a.name for a in reader.attributes])
        panel = _panel(cls, pixels, batch, target)
        return io.NodeOutput(drawn, images, batch, table, ui=panel)


def _panel(
    cls: type[io.ComfyNode], pixels: Tensor, batch: Batch, target: TargetDistribution | None
) -> dict[str, Any]:
    """The clean pictures as temporary files, and the readings: the bars are drawn crisp in the browser."""
    shown = readings_dict(batch.readings, batch.attributes, target)
    files: Sequence[dict[str, Any]] = []
    if len(pixels):
        files = ui.PreviewImage(pixels.movedim(1, -1), cls=cls).as_dict()["images"]
    size = {"width": int(pixels.shape[3]), "height": int(pixels.shape[2])}
    faces = [{**file, **size, "faces": found} for file, found in zip(files, shown["pictures"])]
    statistics = FairnessStatistics(batch.attributes)
    statistics.add(batch.readings)
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
        table = texts.shares_table(statistics.measure(target), statistics.note())
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
