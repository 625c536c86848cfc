"""A turn of learning: what it was asked for, and which of its steps are done, in a folder that outlives a kill.

::

    turns/
      candidate -> turn-0002/checkpoint     what the workers of the new model open, while there is one
      current -> turn-0001/checkpoint       the model that answers, as of the last run
      events/, answers                      exported from the service, where no other folder is given
      turn-0002/
        turn.json                           what was asked for, the steps that are done, the outcome
        data/                               notes and pairs to train on; test/ has the newest notes and theirs
        checkpoint/                         the new model
        gate.md                             the gate's table

A step is recorded when all that it made is on disk, so that after a kill the turn goes on with the one that was cut.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from model.files import read_bounded, sync, write_json

FORMAT = 1
RECORD = "turn.json"
CANDIDATE = "candidate"
_ABANDONED = ".abandoned"
_MOST_BYTES = 1 << 20


@dataclass(slots=True)
class Turn:
    """One turn.

    Args:
        asked: the options that decide what it learns, and the serving model that it starts from.
        begun_at: seconds since 1970.
        steps: by name, in the order in which they were done: ``at`` and ``took_s``, ``inputs`` with digests, and what
            the step ``found``.
        outcome: None while it is not over; then "refused", "shipped" or "taken back", with ``why``.
        waits_for: what the next step waited for when it was last tried; empty where it has not begun or was cut.
    """

    folder: Path
    asked: dict[str, Any]
    begun_at: float
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcome: str | None = None
    why: str = ""
    waits_for: str = ""

    @classmethod
    def last(cls, root: Path) -> Self | None:
        """The newest turn in a folder of turns, None without any; see `load`."""
        folders = sorted(path.parent for path in root.glob(f"turn-*/{RECORD}"))
        return cls.load(folders[-1]) if folders else None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The turn in a folder. Raises ValueError if its record cannot be read."""
        path = folder / RECORD
        try:
            record = json.loads(read_bounded(path, _MOST_BYTES))
            if record.pop("format") == FORMAT:
                return cls(folder, **record)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        raise ValueError(f"{path} is no record that this release reads: name another folder with --turns")

    @classmethod
    def begin(cls, root: Path, asked: Mapping[str, Any], after: Self | None) -> Self:
        """A new turn behind the last one."""
        number = int(after.folder.name.partition("-")[2]) + 1 if after else 1
        turn = cls(root / f"turn-{number:04}", dict(asked), time.time())
        shutil.rmtree(turn.folder, ignore_errors=True)  # of a kill before the record was there
        turn.folder.mkdir(parents=True)
        turn.save()
        return turn

    @property
    def data(self) -> Path:
        """Notes and pairs."""
        return self.folder / "data"

    @property
    def checkpoint(self) -> Path:
        """The new model."""
        return self.folder / "checkpoint"

    @property
    def serving(self) -> Path:
        """The checkpoint that it starts from, and has to be better than."""
        return Path(self.asked["serving"])

    @property
    def experiment(self) -> str:
        """The name of its experiment: those of the store are used once, and turns may be abandoned."""
        return time.strftime("learn-%Y%m%d-%H%M%S", time.gmtime(self.begun_at))

    def found(self, step: str) -> dict[str, Any]:
        """What a step found; empty before it is done."""
        found: dict[str, Any] = self.steps.get(step, {}).get("found", {})
        return found

    def record(
        self,
        step: str,
        took_s: float,
        inputs: Mapping[str, str],
        found: Mapping[str, Any],
        outcome: str | None = None,
        why: str = "",
    ) -> None:
        """Keep that a step is done, and with an outcome that the turn is over."""
        self.steps[step] = {"at": time.time(), "took_s": round(took_s, 1), "inputs": dict(inputs), "found": dict(found)}
        self.outcome, self.why, self.waits_for = outcome, why, ""
        self.save()

    def wait(self, for_what: str) -> None:
        """Keep for what the next step waits."""
        self.waits_for = for_what
        self.save()

    def save(self) -> None:
        """Write the record, so that a kill leaves the old one or the new one."""
        record = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "folder"}
        write_json(self.folder / RECORD, {"format": FORMAT, **record})

    def offer(self) -> Path:
        """Let the link `CANDIDATE` lead to the new model; the link."""
        link = self.folder.parent / CANDIDATE
        lead(link, self.checkpoint)
        return link

    def withdraw(self) -> None:
        """Take that link away."""
        (self.folder.parent / CANDIDATE).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the turn with all its files. At once, as far as others can see."""
        self.withdraw()
        gone = self.folder.with_name(_ABANDONED)
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.rename(gone)
        shutil.rmtree(gone)


def lead(link: Path, folder: Path) -> None:
    """Let a link lead to a folder, by a relative path where that is beside it: such a folder may be moved."""
    staged = link.with_name(f".{link.name}")
    staged.unlink(missing_ok=True)
    staged.symlink_to(folder.relative_to(link.parent) if folder.is_relative_to(link.parent) else folder.resolve())
    staged.replace(link)
    sync(link.parent)


def digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
