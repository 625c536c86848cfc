"""Click-through rates with intervals that know that a reader's items are not independent of each other.

The rate is a ratio of two sums over readers, clicks and items shown. Its variance is that of the linearized ratio: with
c_i clicks of n_i items of the i-th of K readers, and R = sum(c) / sum(n),

    var(R) = K / (K - 1) * sum((c_i - R n_i)^2) / sum(n)^2

which is the delta method (Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics", KDD 2018). Only sums
of squares and products over readers are needed.
"""

import math
from dataclasses import dataclass

from model.evaluation.metrics import Figure

_Z = 1.959964  # of 95%


@dataclass(frozen=True, slots=True)
class Rate:
    """Items that were shown to ``readers``, how many were clicked, and their share with its 95% interval."""

    shown: int
    clicks: int
    readers: int
    share: Figure


def rate(shown: float, clicks: float, readers: int, cc: float, cn: float, nn: float) -> Rate:
    """The rate of these sums over readers: items, clicks, readers, and of clicks², clicks * items, items².

    With fewer than two readers there is no interval.
    """
    share = clicks / shown
    if readers < 2:
        return Rate(int(shown), int(clicks), readers, Figure(share))
    residual = max(0.0, cc - 2 * share * cn + share**2 * nn)
    reach = _Z * math.sqrt(readers / (readers - 1) * residual) / shown
    return Rate(int(shown), int(clicks), readers, Figure(share, max(0.0, share - reach), min(1.0, share + reach)))
