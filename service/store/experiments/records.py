"""An experiment as it is kept, for its report also after its end."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

# Readers are divided among experiments by these.
SLOTS = 1000
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
ARM = re.compile(r"[A-Za-z0-9_-]{1,20}")

# As `service.contract.related.Rules` has them: a number, or a word.
Parameters = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class Arm:
    """A model, and the rules of lists that it is tried with: they hold where a request gives no others."""

    name: str
    model: str
    parameters: Parameters

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.name}={','.join([self.model, *(f'{name}={value}' for name, value in self.parameters.items())])}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Two arms that share a part of all readers evenly; the second is compared with the first.

    Args:
        slots: which of the `SLOTS` are its readers', each as first and behind the last.
        started_at: seconds since 1970.
        ended_at: the same; None while it runs.
        shipped: the name of the arm whose model was activated at its end.
    """

    name: str
    arms: tuple[Arm, Arm]
    slots: tuple[tuple[int, int], ...]
    started_at: float
    ended_at: float | None = None
    shipped: str | None = None

    @property
    def runs(self) -> bool:
        """Whether readers are in it."""
        return self.ended_at is None

    @property
    def share(self) -> float:
        """The share of all readers that are in it."""
        return sum(behind - first for first, behind in self.slots) / SLOTS

    @property
    def models(self) -> tuple[str, ...]:
        """The models of its arms."""
        return tuple(arm.model for arm in self.arms)

    def arm(self, name: str) -> Arm | None:
        """The arm of this name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def encode(self) -> str:
        """JSON, which scripts read, too."""
        fields = asdict(self)
        del fields["name"]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def decode(cls, name: str, record: bytes) -> "Experiment":
        """Inverse of `encode`. Raises ValueError."""
        try:
            fields = json.loads(record)
            first, second = (Arm(arm["name"], arm["model"], arm["parameters"]) for arm in fields["arms"])
            slots = tuple((int(start), int(behind)) for start, behind in fields["slots"])
            return cls(
                name, (first, second), slots, fields["started_at"], fields.get("ended_at"), fields.get("shipped")
            )
        except (KeyError, TypeError) as error:
            raise ValueError("no experiment") from error


def free_slots(share: float, experiments: Iterable[Experiment]) -> tuple[tuple[int, int], ...] | None:
    """Slots for a share of all readers that are in no running experiment, at least one; None if there are too few."""
    taken = {slot for one in experiments if one.runs for first, behind in one.slots for slot in range(first, behind)}
    free = [slot for slot in range(SLOTS) if slot not in taken]
    wanted = max(round(share * SLOTS), 1)
    if len(free) < wanted:
        return None
    found: list[tuple[int, int]] = []
    for slot in free[:wanted]:
        if found and found[-1][1] == slot:
            found[-1] = found[-1][0], slot + 1
        else:
            found.append((slot, slot + 1))
    return tuple(found)
