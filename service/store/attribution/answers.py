"""The record of an answer, its id, and a batch of records as one entry of the log."""

import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import msgpack

Scenario = Literal["related", "search", "tags", "written", "failed"]

_LEVEL = 1  # a batch becomes a third of it; the levels above take twice the time for a tenth less
_MODEL_CHARS = 8
_LETTERS: dict[Scenario, str] = {"related": "r", "search": "s", "tags": "t", "written": "w", "failed": "f"}
_SCENARIOS = {letter: scenario for scenario, letter in _LETTERS.items()}


class ServedAnswer(NamedTuple):
    """What an answer said: ``ids`` are the notes of a list, in order, or the hashtags suggested for a draft.

    ``written`` is no answer but the end of one: a note was stored whose write named the answer of `tags` with this id;
    ``ids`` are the note's hashtags then. ``failed`` is an error of ours, to a reader in an experiment, and ``ids`` its
    code. A ``tags`` answer has the suggested ``category``, too. ``time`` is in seconds
    since 1970, ``parameters`` a digest of the rules of the request, without its reader. ``reader`` is empty where a
    request names none; in memory it is the reader's id, and in the log its hash, see `readers`. ``seconds`` is what the
    answer took, from its parsed request on.
    """

    answer_id: str
    time: float
    scenario: Scenario
    model: str
    ids: Sequence[str]
    parameters: str = ""
    reader: str = ""
    experiment: str = ""
    arm: str = ""
    note_id: str = ""
    category: str = ""
    seconds: float = 0.0


class AnswerSource(NamedTuple):
    """What the id of an answer tells: the scenario, the first characters of the model's fingerprint, and the arm."""

    scenario: Scenario
    model: str
    arm: str


def new_answer_id(scenario: Scenario, model: str, arm: str = "") -> str:
    """A new id, which tells its source: an event that names it can be counted without a look at the log."""
    own = f"{random.getrandbits(64):016x}.{_LETTERS[scenario]}.{model[:_MODEL_CHARS]}"
    return f"{own}.{arm}" if arm else own


def source_of_answer(answer_id: str) -> AnswerSource | None:
    """The source of an answer by its id; None of ids that are not ours, or of an older release."""
    _, letter, model, arm = [*answer_id.split(".", 3), "", "", ""][:4]
    return AnswerSource(_SCENARIOS[letter], model, arm) if letter in _SCENARIOS else None


def pack(answers: Iterable[ServedAnswer]) -> bytes:
    """The records as one entry of the log: a compressed msgpack list of lists, their fields in order."""
    records: bytes = msgpack.packb(list(answers))  # of tuples, named or not
    return zlib.compress(records, _LEVEL)


def unpack(batch: bytes) -> list[ServedAnswer]:
    """Inverse of `pack`; fields of a later release are left out. Raises ValueError on a malformed batch."""
    try:
        records = msgpack.unpackb(zlib.decompress(batch))
        answers = [ServedAnswer(*record[: len(ServedAnswer._fields)]) for record in records]
    except (zlib.error, ValueError, TypeError) as error:
        raise ValueError("no batch of answers") from error
    if not all(answer.scenario in get_args(Scenario) for answer in answers):
        raise ValueError("an answer of no known scenario")
    return answers


def holds(batch: bytes, text: str) -> bool:
    """Whether a batch holds a text somewhere; without unpacking it. Raises ValueError on a malformed batch."""
    try:
        return text.encode() in zlib.decompress(batch)
    except zlib.error as error:
        raise ValueError("no batch of answers") from error
