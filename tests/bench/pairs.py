"""What the pairs of a log cost on DuckDB and on Spark, in turns, and whether they are the same.

Without DATA the log is drawn: readers and notes by Zipf's law, two events in five of them clicks. Each engine runs as
`notellm pairs` in a process of its own; memory is the highest sum of resident memory of it and what it
started. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MIB = 1024 * 1024
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Draw, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of notes and events instead of a drawn log")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--readers", type=int, default=200_000)
    parser.add_argument("--notes", type=int, default=100_000)
    parser.add_argument("--memory", default="1GB", help="of DuckDB")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--driver-memory", default="3g")
    parser.add_argument("--engines", nargs="+", default=["duckdb", "spark"])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of `notellm pairs`, after all others")
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="notellm-bench-pairs-") as folder:
        data = asked.data or draw(Path(folder), asked.events, asked.readers, asked.notes)
        options = {
            "duckdb": ["--memory", asked.memory],
            "spark": f"--engine spark --master {asked.master} --conf spark.driver.memory={asked.driver_memory}".split(),
        }
        drawn = {name: getattr(asked, name) for name in ("events", "readers", "notes")}
        result: dict[str, Any] = {"data": asked.data.name} if asked.data else drawn
        files = []
        for engine in asked.engines:
            files.append(Path(folder) / f"{engine}.parquet")
            command = ["pairs", str(data), "--out", str(files[-1]), *options[engine], *asked.options]
            result[engine] = measured([sys.executable, "-m", "service.cli.main", *command])
            result[engine]["pairs"] = pq.read_metadata(files[-1]).num_rows
            print(engine, json.dumps(result[engine]), flush=True)
        tables = [pq.read_table(file) for file in files]
        result["equal"] = all(table.equals(tables[0]) for table in tables)
    print(json.dumps(result))


def draw(folder: Path, events: int, readers: int, notes: int) -> Path:
    """A folder of notes and of a log in which few readers and few notes do most."""
    draw = np.random.default_rng(0)
    users_E = draw.choice(readers, events, p=zipf(readers, 0.5))
    notes_E = draw.permutation(notes)[draw.choice(notes, events, p=zipf(notes, 0.8))]
    ids = pa.array([f"note-{number:07}" for number in range(notes)])
    columns = {
        "user_id": pa.array([f"reader-{number:07}" for number in range(readers)]).take(pa.array(users_E)),
        "note_id": ids.take(pa.array(notes_E)),
        "ts": draw.integers(1_700_000_000, 1_710_000_000, events),
        "event": pa.array(["view", "click"]).take(pa.array((draw.random(events) < 0.4).astype(np.int8))),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    pq.write_table(pa.table({"note_id": ids, "title": ids}), folder / "notes.parquet")
    return folder


def zipf(count: int, exponent: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probabilities of the ranks 1 to ``count``, shape (count,)."""
    weights = np.arange(1, count + 1) ** -exponent
    return weights / weights.sum()


def measured(command: list[str]) -> dict[str, float]:
    """Seconds, processor seconds, and the peak of memory of a command and its children."""
    start_s, peak_bytes = time.perf_counter(), 0
    processor_s: dict[int, float] = {}
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            held = 0
            for pid in family(process.pid):
                with suppress(OSError, IndexError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    processor_s[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                    held += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            peak_bytes = max(peak_bytes, held)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - start_s, 1),
        "processor_s": round(sum(processor_s.values()), 1),
        "peak_mib": round(peak_bytes / MIB),
    }


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


if __name__ == "__main__":
    main()
