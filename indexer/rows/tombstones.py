"""Versions of deleted ids, kept for as long as an older version may still arrive."""

from collections.abc import Iterable, Mapping


class Tombstones:
    """Versions of deleted ids, in epochs: each begins when a snapshot was written.

    A stream brings the changes of an id in order. An upsert older than a delete can follow it only when the stream
    is read again, and it is never read again from before the oldest snapshot that is kept. So a tombstone is dropped
    once as many snapshots as are kept were written after it.
    """

    def __init__(self, epochs: Iterable[Mapping[str, int]] = ({},)) -> None:
        self._epochs = [dict(epoch) for epoch in epochs]

    def __len__(self) -> int:
        return sum(map(len, self._epochs))

    def version(self, id_: str) -> int | None:
        """The version at which the id was deleted, if it is."""
        return next((epoch[id_] for epoch in self._epochs if id_ in epoch), None)

    def put(self, id_: str, version: int) -> None:
        """The id is deleted at this version, in the present epoch."""
        self.remove(id_)
        self._epochs[-1][id_] = version

    def remove(self, id_: str) -> None:
        """The id is live again."""
        for epoch in self._epochs:
            epoch.pop(id_, None)

    def snapshot_written(self, kept: int) -> None:
        """Begin an epoch, and drop the epochs before the ``kept`` last snapshots."""
        self._epochs.append({})
        del self._epochs[: -kept - 1]

    def epochs(self) -> list[dict[str, int]]:
        """A copy for `__init__`, oldest first."""
        return [dict(epoch) for epoch in self._epochs]
