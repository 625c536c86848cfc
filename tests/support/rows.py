"""Rows as data files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def jsonl(path: Path, rows: list[Any]) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As Parquet."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
