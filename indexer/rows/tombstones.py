"""What was deleted, for as long as an older version of it may still come along."""

from collections.abc import Iterable, Mapping


class Tombstones:
    """Versions of deleted ids, in epochs: each begins when a snapshot was written.

    A stream brings the changes of an id in order. An upsert older than a delete can come behind it only when
    the stream is read again, and it is never read again from before the oldest snapshot that is kept. So a
    tombstone may go once as many snapshots as are kept were written after it.
    """

    def __init__(self, epochs: Iterable[Mapping[str, int]] = ({},)) -> None:
        self._epochs = [dict(epoch) for epoch in epochs]

    def __len__(self) -> int:
        return sum(map(len, self._epochs))

    def __contains__(self, id_: str) -> bool:
        return any(id_ in epoch for epoch in self._epochs)

    def version(self, id_: str) -> int | None:
        """The version at which the id was deleted, if it is."""
        return next((epoch[id_] for epoch in self._epochs if id_ in epoch), None)

    def put(self, id_: str, version: int) -> None:
        """Deleted at this version, now."""
        self.remove(id_)
        self._epochs[-1][id_] = version

    def remove(self, id_: str) -> None:
        """There again."""
        for epoch in self._epochs:
            epoch.pop(id_, None)

    def snapshot_written(self, kept: int) -> None:
        """Another epoch begins; what is older than the ``kept`` last snapshots goes."""
        self._epochs.append({})
        del self._epochs[: -kept - 1]

    def epochs(self) -> list[dict[str, int]]:
        """A copy, oldest first: what `__init__` takes."""
        return [dict(epoch) for epoch in self._epochs]
