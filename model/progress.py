"""Progress bars of commands."""

from typing import Any

from tqdm import tqdm


def bar(what: str, total: int, unit: str) -> Any:
    """A bar that shows itself only on a terminal, and only when it takes long."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, delay=1, disable=None)
