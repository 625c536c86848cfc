"""The same on Ray: one backend an actor, on any number of machines.

This process reads the notes, gives each actor two parts at a time, and writes what comes back, so a part is on disk as
a whole or not at all, as without Ray, and neither the notes nor the folder have to be where the actors are. The part
of an actor that dies is done again by its successor; a part at which four die ends the run.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError, RayTaskError
from tqdm import tqdm

from model.backend import Backend
from model.inference.bulk.load import BulkError, BulkLoad, missing, progress_of, writing
from model.inference.many import embed_part
from model.note import Note

RETRIES = 3
_PARTS_AN_ACTOR = 2  # the next one is there when one is done


class Embedder:
    """An actor: opens its backend at the first notes, so that a mistake there is the answer to a call."""

    def __init__(self, open_backend: Callable[[], Backend], fingerprint: str) -> None:
        self._open, self._fingerprint = open_backend, fingerprint
        self._backend: Backend | None = None

    def embed(self, notes: Sequence[Note]) -> NDArray[np.float32]:
        """Unit vectors of the notes, shape (len(notes), dim), in order.

        Raises:
            ValueError: if the machine has another model, or one that cannot be used.
        """
        if self._backend is None:
            backend = self._open()
            if backend.fingerprint != self._fingerprint:
                raise ValueError(f"{os.uname().nodename} has model {backend.fingerprint}, and this machine another")
            self._backend = backend
        return embed_part(self._backend, notes, tqdm(disable=True))


def embed_on_ray(
    load: BulkLoad, open_backend: Callable[[], Backend], *, actors: int | None = None, gpus: int = 1
) -> None:
    """Embed the parts that are not finished on the cluster of ``RAY_ADDRESS``, or on this machine.

    Each of so many ``actors`` calls ``open_backend`` once, and has so many ``gpus`` where the cluster has any. By
    default there is an actor for these GPUs each, or one.

    Raises:
        FolderInUse: if another process is at work on a part.
        BulkError: if actors died again and again, or the cluster is gone.
        ValueError, OSError: of ``open_backend``.
    """
    with _cluster() as in_cluster, progress_of(load) as progress:
        kind = ray.remote(Embedder).options(
            num_gpus=gpus if in_cluster else 0, max_restarts=-1, max_task_retries=RETRIES, max_concurrency=1
        )
        count = actors or max(1, in_cluster // gpus)
        free = deque([kind.remote(open_backend, load.fingerprint) for _ in range(count)] * _PARTS_AN_ACTOR)
        under_way: dict[Any, tuple[ExitStack, Callable[[NDArray[np.float32]], None], Any]] = {}

        def write_next() -> None:
            [done], _ = ray.wait(list(under_way))
            claim, write, embedder = under_way.pop(done)
            with claim:
                vectors_ND = _result(done)
                write(vectors_ND)
            progress.update(len(vectors_ND))
            free.append(embedder)

        for part, notes in missing(load):
            if not free:
                write_next()
            claim, embedder = ExitStack(), free.popleft()
            write = claim.enter_context(writing(load, part, notes))
            under_way[embedder.embed.remote(notes)] = claim, write, embedder
        while under_way:
            write_next()


@contextmanager
def _cluster() -> Iterator[int]:
    """A session of Ray, and how many GPUs it has now. What started here ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that starts here; Ray would report on it
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, ConnectionError) as error:
        raise BulkError(f"Ray did not start: {error}") from error
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises BulkError where nobody listens: Ray would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise BulkError(f"no cluster of Ray answers where RAY_ADDRESS says: {error}") from error


def _result(done: Any) -> NDArray[np.float32]:
    try:
        vectors_ND: NDArray[np.float32] = ray.get(done)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise BulkError(
            f"an actor died {RETRIES + 1} times at one part: out of memory, mostly; Ray's logs say so, and fewer "
            "--actors a machine or smaller --notes-per-part help"
        ) from error
    except RayError as error:
        raise BulkError(f"Ray's cluster is gone, or does not answer: {error}") from error
    return vectors_ND
