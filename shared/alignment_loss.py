"""The distributional alignment loss (Shen et al., ICLR 2024), second half; targets: `transport.py`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import cross_entropy

from .errors import FairAdapterError


def alignment_loss(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    total: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """L_align = 1/N sum_i 1[c_i >= C] CE(h(x_i), y_i), summed over the attributes. A scalar, float32 or
    wider.

    logits: attribute -> (n, K_a), classifier outputs of a micro-batch; rows without a face may hold anything.
    labels: attribute -> (n,) int64, `DynamicTargets.labels`; -1 (no face, not certain) adds nothing.
    total: N, the number of images of the whole iteration, faceless ones included; n where it is one batch.
        Losses of micro-batches of any sizes then add up to the loss of the iteration.
    temperature: T in T CE(h / T, y), whose gradient is softmax(h / T) - y. The loss is at rest where the mean
        probability of a class is its share; of an unsure classifier that is not the share of the faces that
        are read as the class. T below 1 brings the two together.
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
        entropy = temperature * cross_entropy(row / temperature, label[keep], reduction="sum")
        losses.append(entropy / (total or len(label) or 1))
    return sum(losses[1:], start=losses[0])
