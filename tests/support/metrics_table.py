"""The documented metrics: the table of deploy/metrics.md."""

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parents[2] / "deploy" / "metrics.md"


@dataclass(frozen=True)
class Row:
    """One metric as it is documented; ``values`` holds what a label may be, where the table says so."""

    name: str
    type: str
    labels: tuple[str, ...]
    values: dict[str, set[str]]
    processes: set[str]


def documented() -> dict[str, Row]:
    """Every row by its name, as it is exported: that of a counter ends with _total."""
    rows = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("| `notellm_"):
            name, kind, labels, _, processes = (cell.strip() for cell in line.strip("|").split("|"))
            bounded = {
                label: set(re.split(r", *", values)) for label, values in re.findall(r"(\w+)\{([^}]*)\}", labels)
            }
            names = tuple(re.findall(r"\w+", re.sub(r"\{[^}]*\}", "", labels)))
            rows[name.strip("`")] = Row(name.strip("`"), kind, names, bounded, set(re.split(r", *", processes)))
    return rows
