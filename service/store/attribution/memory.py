"""`AnswerLog` in memory."""

from collections.abc import Sequence

from service.store.attribution.answers import ServedAnswer
from service.store.attribution.readers import name_of
from service.store.memory import Faults


class MemoryAnswerLog(Faults):
    """`AnswerLog` as a list; readers have the names that they have on Redis."""

    key = b"of the twin"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[ServedAnswer] = []

    async def append(self, answers: Sequence[ServedAnswer]) -> None:
        """See `AnswerLog`."""
        await self.reached()
        named = (answer.reader and name_of(answer.reader, self.key) for answer in answers)
        self.kept += [answer._replace(reader=name) for answer, name in zip(answers, named, strict=True)]

    async def erase(self, reader: str) -> None:
        """See `AnswerLog`."""
        await self.reached()
        self.kept = [answer for answer in self.kept if answer.reader != name_of(reader, self.key)]
