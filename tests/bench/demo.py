"""The demo with several models, side by side: how soon it is ready, how long a draft takes, and what is suggested.

Starts `notellm serve --samples` with each model in turn, in a new state folder, several times: seconds to ready. Then
asks for hashtags and a category for the twenty drafts of demo_drafts.json, one at a time, several rounds: the latency
of a draft; and for the related notes of ten sample notes. Writes drafts.md and related.md to be judged by a person. The
last line is one JSON object.

    python tests/bench/demo.py [--models model/mini model/smollm2] [--starts 3] [--rounds 3] [--out model/reports/demo]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.service import Service, running

from service.client import NoteLLMClient
from service.contract.tags import TagsOut

DRAFTS: list[dict[str, str]] = json.loads(Path(__file__).with_name("demo_drafts.json").read_text(encoding="utf-8"))
NOTES = [
    "travel-05", "coffee-09", "cats-12", "running-20", "gardening-03", "books-25", "sleep-07", "thrifting-11",
    "cars-03", "weddings-18",
]  # fmt: skip
SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, default=[Path("model/mini"), Path("model/smollm2")])
    parser.add_argument("--starts", type=int, default=3, help="how often each model starts in a new state folder")
    parser.add_argument("--rounds", type=int, default=3, help="how often each draft is asked for")
    parser.add_argument("--out", type=Path, default=Path("model/reports/demo"))
    options = parser.parse_args()
    seen = {model.name: Seen(model, options.starts, options.rounds) for model in options.models}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "drafts.md").write_text(drafts_table(seen), encoding="utf-8")
    (options.out / "related.md").write_text(related_table(seen), encoding="utf-8")
    print(json.dumps({name: one.figures for name, one in seen.items()}))


class Seen:
    """What one model's demo did."""

    def __init__(self, model: Path, starts: int, rounds: int) -> None:
        ready_s: list[float] = []
        for start in range(starts):
            with tempfile.TemporaryDirectory() as name:
                service = Service(Path(name), model.absolute(), "--samples")
                del service.environment["NOTELLM_WORKER__THREADS"]  # as the demo has it
                began = time.monotonic()
                with running(service), service.client() as notellm:
                    ready_s.append(time.monotonic() - began)
                    if start + 1 == starts:
                        self._ask(notellm, rounds)
        latencies_ms = sorted(self.latencies_ms)
        self.figures = {
            "ready_s": [round(seconds, 1) for seconds in ready_s],
            "draft_p50_ms": round(statistics.median(latencies_ms)),
            "draft_p99_ms": round(latencies_ms[int(0.99 * len(latencies_ms))]),
            "drafts": len(latencies_ms),
        }

    def _ask(self, notellm: NoteLLMClient, rounds: int) -> None:
        self.latencies_ms: list[float] = []
        for _ in range(rounds):
            self.drafts: list[TagsOut] = []
            for draft in DRAFTS:
                began = time.monotonic()
                self.drafts.append(notellm.tags(**draft))
                self.latencies_ms.append(1000 * (time.monotonic() - began))
        self.related = {note: [item.title for item in notellm.related(note, k=SHOWN).items] for note in NOTES}
        self.titles = {note: notellm.get(note).title for note in NOTES}


def drafts_table(seen: dict[str, Seen]) -> str:
    rows = [
        [draft["title"], *(_suggested(one.drafts[number]) for one in seen.values())]
        for number, draft in enumerate(DRAFTS)
    ]
    return "# Suggestions for twenty drafts\n\n" + _table(["draft", *seen], rows)


def related_table(seen: dict[str, Seen]) -> str:
    first = next(iter(seen.values()))
    rows = [
        [first.titles[note], *("<br>".join(_cell(title) for title in one.related[note]) for one in seen.values())]
        for note in NOTES
    ]
    return f"# The first {SHOWN} related notes of ten sample notes\n\n" + _table(["note", *seen], rows)


def _suggested(tags: TagsOut) -> str:
    category = f"{tags.category.name} {tags.category.score:.2f}" if tags.category else "none"
    return f"**{category}**; " + ", ".join(f"{tag.tag} {tag.score:.2f}" for tag in tags.hashtags)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "/")


if __name__ == "__main__":
    main()
