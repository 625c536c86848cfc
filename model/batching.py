"""Which notes share a forward pass, and how many tokens it may have: policy without a network."""

from collections.abc import Sequence

_RECOVERY_PASSES = 64


def fits(lengths: Sequence[int], max_tokens: int) -> int:
    """How many notes, from the front, share one padded forward pass: at least one.

    A padded batch costs ``count * longest`` tokens. A note longer than the budget runs alone.
    """
    longest = 0
    for count, length in enumerate(lengths, start=1):
        longest = max(longest, length)
        if count > 1 and count * longest > max_tokens:
            return count - 1
    return len(lengths)


def batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions grouped into padded batches of at most ``max_tokens``, notes of like length together."""
    order = sorted(range(len(lengths)), key=lambda position: lengths[position])
    grouped, start = [], 0
    for place, position in enumerate(order):
        # In this order every note is the longest of its batch so far.
        if place > start and (place - start + 1) * lengths[position] > max_tokens:
            grouped.append(order[start:place])
            start = place
    return [*grouped, order[start:]] if order else []


def together(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Positions of the next padded batch: the first note and those nearest to it in length, as many as fit.

    The first note always goes, so that none waits for ever while others of a more common length arrive.
    """
    order = sorted(range(len(lengths)), key=lambda position: abs(lengths[position] - lengths[0]))
    return order[: fits([lengths[position] for position in order], max_tokens)]


class TokenBudget:
    """How many padded tokens may share a forward pass: ``now``, and never more than ``most``.

    Halved when memory runs out; every pass that succeeds gives back a part, so that a short shortage costs little, and
    a lasting one a failed pass in a few dozen.
    """

    def __init__(self, most: int) -> None:
        self.most = self.now = most

    def shed(self, tokens: int) -> None:
        """A pass of so many padded tokens ran out of memory."""
        self.now = max(1, min(self.now, tokens) // 2)

    def recover(self) -> None:
        """A pass succeeded."""
        self.now = min(self.most, self.now + max(1, self.most // _RECOVERY_PASSES))
