"""Which notes share a forward pass, and how many tokens it may have: policy without a network."""

from collections.abc import Sequence

_RECOVERY_PASSES = 64


def admits(lengths: Sequence[int], max_tokens: int, under_way: Sequence[int] = ()) -> int:
    """How many notes, from the front, may join those ``under_way``: at least one where there are none.

    Padded notes cost ``count * longest`` tokens, those under way included. A note longer than the budget runs alone.
    """
    longest = max(under_way, default=0)
    for joined, length in enumerate(lengths):
        longest, count = max(longest, length), len(under_way) + joined + 1
        if count > 1 and count * longest > max_tokens:
            return joined
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


def together(lengths: Sequence[int], max_tokens: int, under_way: Sequence[int] = ()) -> list[int]:
    """Positions of the next notes to join: the first one and those nearest to it in length, as many as `admits` lets.

    The first note is never passed over, so that none waits for ever while others of a more common length arrive.
    """
    order = sorted(range(len(lengths)), key=lambda position: abs(lengths[position] - lengths[0]))
    return order[: admits([lengths[position] for position in order], max_tokens, under_way)]


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
