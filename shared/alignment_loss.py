"""The distributional alignment loss (Shen et al., ICLR 2024), second half; targets: `transport.py`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

from .errors import FairAdapterError


def alignment_loss(
    logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], total: int | None = None
) -> Tensor:
    """L_align = 1/N sum_i 1[c_i >= C] CE(h(x_i), y_i), summed over the attributes. A scalar, float32 or
    wider.

    logits: attribute -> (n, K_a), classifier outputs of a micro-batch; rows without a face may hold anything.
    labels: attribute -> (n,) int64, `DynamicTargets.labels`; -1 (no face, not certain) adds nothing.
    total: N, the number of images of the whole iteration, faceless ones included; n where it is one batch.
        Losses of micro-batches of any sizes then add up to the loss of the iteration.
    """
    if not labels:
        raise FairAdapterError("alignment loss: no attribute has labels")
    losses = []
    for name, label in labels.items():
        if name not in logits or len(logits[name]) != len(label):
            found = f"{len(logits[name])} rows" if name in logits else "nothing"
            raise FairAdapterError(
                f"alignment loss: expected {len(label)} rows of {name} logits, found {found}"
            )
        keep = label >= 0  # selected, not masked: logits of a missing face may be NaN, and NaN * 0 is NaN
        row = logits[name][keep]
        row = row if row.dtype.itemsize >= 4 else row.float()
        losses.append(cross_entropy(row, label[keep], reduction="sum") / (total or len(label) or 1))
    return sum(losses[1:], start=losses[0])
