"""Which notes share a forward pass: policy as pure functions."""

from collections.abc import Sequence


def fits(lengths: Sequence[int], max_tokens: int) -> int:
    """How many notes, taken from the front, share one padded forward pass.

    A padded batch costs ``count * longest`` tokens. At least one note always goes, so a note longer than the budget
    runs alone instead of blocking the queue for ever.
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
    grouped = []
    while order:
        count = fits([lengths[position] for position in order], max_tokens)
        grouped.append(order[:count])
        order = order[count:]
    return grouped
