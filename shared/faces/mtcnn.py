"""The MTCNN cascade: proposal, refinement and output net over a batch of equal-size images.

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks",
IEEE SPL 2016. Nets and weights are those of the package facenet-pytorch (`cascade_nets`); its own cascade
crashes on images whose shorter side is below its min_face_size (20 px) and on boxes that leave the image, and
crops box by box in a Python loop. This one agrees with it (tests/test_faces.py) and

* crops every box of a batch at once, through integral images of whole grey levels: exact sums, so that
  a crop does not depend on the device or on its neighbours in the batch;
* suppresses overlaps per image, also for boxes that stick out to the left of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cascade_nets import load_nets

CELL = 12  # side of the proposal net's receptive field, and its stride below
STRIDE = 2
PYRAMID = 0.709  # ratio of neighbouring scales: each halves the area
PASS = (0.6, 0.7, 0.7)  # probability that lets a box into the next stage (the package's defaults)
BATCH = 1024  # boxes per pass of the second and third net


class Cascade(nn.Module):
    """P-Net, R-Net and O-Net.

    Raises:
        FairAdapterError: their weight file is missing, damaged or another one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.propose_net, self.refine_net, self.output_net = load_nets()

    @torch.no_grad()
    def forward(self, levels: Tensor, smallest: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Faces in ``levels``, (N, 3, H, W) uint8, whose side is ``smallest`` px or more.

        Returns:
            boxes (M, 4) as x0, y0, x1, y1 in px, probabilities (M,), five points (M, 5, 2) in px in the
            order left eye, right eye, nose, left and right mouth corner as seen, and image index (M,).
        """
        boxes, owner = self._propose(levels, smallest)
        sums = integral(levels)
        boxes, owner = self._refine(sums, boxes, owner)
        return self._output(sums, boxes, owner)

    def _propose(self, levels: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
        height, width = levels.shape[2:]
        pixels = levels.float()
        scale = CELL / smallest
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        while min(height, width) * scale >= CELL:
            size = (int(height * scale + 1), int(width * scale + 1))
            resized = normalised(F.interpolate(pixels, size, mode="area"))
            # channels last, like the crops below: the CPU pools it twice as fast
            shift, probability = self.propose_net(resized.contiguous(memory_format=torch.channels_last))
            found.append(_cells(shift, probability[:, 1], scale))
            scale *= PYRAMID
        if not found:
            return pixels.new_zeros(0, 4), levels.new_zeros(0, dtype=torch.long)
        boxes, score, shift, owner = (torch.cat(parts) for parts in zip(*found))
        keep = suppress(boxes, score, owner, 0.7)
        boxes, shift, owner = boxes[keep], shift[keep], owner[keep]
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return square(boxes + shift * side), owner

    def _refine(self, sums: Tensor, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        boxes, owner, (shift, probability) = _classify(self.refine_net, sums, boxes, owner, 24)
        passed = probability[:, 1] > PASS[1]
        boxes, owner, shift, score = boxes[passed], owner[passed], shift[passed], probability[passed, 1]
        keep = suppress(boxes, score, owner, 0.7)
        return square(_regress(boxes[keep], shift[keep])), owner[keep]

    def _output(self, sums: Tensor, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        boxes, owner, (shift, marks, probability) = _classify(self.output_net, sums, boxes, owner, 48)
        passed = probability[:, 1] > PASS[2]
        boxes, owner, shift, marks = boxes[passed], owner[passed], shift[passed], marks[passed]
        score = probability[passed, 1]
        side = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]  # (M, 1, 2)
        points = marks.view(-1, 2, 5).transpose(1, 2) * side + boxes[:, None, :2] - 1
        boxes = _regress(boxes, shift)
        keep = suppress_nested(boxes, score, owner, 0.7)
        return boxes[keep], score[keep], points[keep], owner[keep]


def normalised(levels: Tensor) -> Tensor:
    """Grey levels 0..255 -> about [-1, 1], as the three nets were trained."""
    return (levels - 127.5) * 0.0078125


def _cells(shift: Tensor, probability: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells of one scale that may hold a face: boxes (M, 4), scores (M,), shifts (M, 4), images (M,)."""
    image, row, column = (probability >= PASS[0]).nonzero(as_tuple=True)
    corner = torch.stack([column, row], 1).to(shift.dtype) * STRIDE
    boxes = torch.cat([((corner + 1) / scale).floor(), ((corner + CELL) / scale).floor()], 1)
    score, shift = probability[image, row, column], shift[image, :, row, column]
    keep = suppress(boxes, score, image, 0.5)
    return boxes[keep], score[keep], shift[keep], image[keep]


def _classify(
    net: Callable[[Tensor], tuple[Tensor, ...]], sums: Tensor, boxes: Tensor, owner: Tensor, size: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Boxes that touch their image, their owners, and what ``net`` says of their (size, size) crops."""
    height, width = sums.shape[1] - 1, sums.shape[2] - 1
    whole = boxes.trunc().long()
    low = whole[:, :2].clamp(min=1) - 1  # boxes count pixels from 1, both ends included
    high = torch.minimum(whole[:, 2:], whole.new_tensor([width, height]))
    inside = (high > low).all(1)
    boxes, owner, low, high = boxes[inside], owner[inside], low[inside], high[inside]
    crops = [
        crop(sums, owner[i : i + BATCH], low[i : i + BATCH], high[i : i + BATCH], size)
        for i in range(0, len(boxes), BATCH)
    ]
    if not crops:  # the nets reject empty batches
        blank = net(sums.new_zeros(1, 3, size, size, dtype=torch.float32))
        return boxes, owner, [value[:0] for value in blank]
    parts = [net(normalised(levels)) for levels in crops]
    return boxes, owner, [torch.cat(column) for column in zip(*parts)]


def integral(levels: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, H + 1, W + 1, 3) int32: sums of all levels above and to the left."""
    sums = levels.permute(0, 2, 3, 1).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return F.pad(sums, (0, 0, 1, 0, 1, 0))


def crop(sums: Tensor, owner: Tensor, low: Tensor, high: Tensor, size: int) -> Tensor:
    """Area-resized crops (M, 3, size, size), levels 0..255, of whole-pixel boxes.

    Args:
        sums: `integral` of the images, (N, H + 1, W + 1, 3).
        owner: image index (M,).
        low, high: first pixel and one past the last, (M, 2) as x, y; every box holds a pixel.
        size: side of the crops; output cell i averages pixels floor(i L / size) to ceil((i + 1) L / size).
    """
    cells = torch.arange(size, device=sums.device)
    length = (high - low)[..., None]  # (M, 2, 1)
    start = low[..., None] + cells * length // size  # (M, 2, size)
    end = low[..., None] - (-(cells + 1) * length // size)
    image = owner[:, None, None]
    x0, y0, x1, y1 = start[:, 0, None], start[:, 1, :, None], end[:, 0, None], end[:, 1, :, None]
    total = sums[image, y1, x1] - sums[image, y0, x1] - sums[image, y1, x0] + sums[image, y0, x0]
    area = (x1 - x0) * (y1 - y0)
    return (total.float() / area[..., None].float()).permute(0, 3, 1, 2)


def square(boxes: Tensor) -> Tensor:
    """The smallest squares around boxes (M, 4), same centres."""
    side = boxes[:, 2:] - boxes[:, :2]
    length = side.amax(1, keepdim=True)
    low = boxes[:, :2] + side * 0.5 - length * 0.5
    return torch.cat([low, low + length], 1)


def _regress(boxes: Tensor, shift: Tensor) -> Tensor:
    return boxes + shift * (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)


def suppress(boxes: Tensor, score: Tensor, owner: Tensor, overlap: float) -> Tensor:
    """Indices that survive non-maximum suppression (intersection over union) within each image."""
    from torchvision.ops import nms

    if not len(boxes):
        return owner.new_zeros(0)
    low = boxes.min()  # shift to positive coordinates, then one strip of the plane for each image
    strip = (boxes.max() - low + 1) * owner.to(boxes)
    return nms(boxes - low + strip[:, None], score, overlap)


def suppress_nested(boxes: Tensor, score: Tensor, owner: Tensor, overlap: float) -> Tensor:
    """Like `suppress`, by intersection over the smaller box: drops a face inside a face."""
    order = score.argsort(descending=True, stable=True)
    low = torch.maximum(boxes[order, None, :2], boxes[None, order, :2])
    high = torch.minimum(boxes[order, None, 2:], boxes[None, order, 2:])
    shared = (high - low + 1).clamp(min=0).prod(2)
    area = (boxes[order, 2:] - boxes[order, :2] + 1).prod(1)
    clash = shared > overlap * torch.minimum(area[:, None], area[None])
    clash &= owner[order, None] == owner[None, order]
    alive = [True] * len(order)
    for i, row in enumerate(clash.tolist()):
        if alive[i]:
            for j in range(i + 1, len(row)):
                alive[j] = alive[j] and not row[j]
    return order[torch.tensor(alive, dtype=torch.bool, device=order.device)]
