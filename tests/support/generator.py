"""Many requests at once from one process, on sockets and epoll alone: a client must cost less than what it measures.

Closed loop: each connection asks again as soon as it is answered. Open loop: requests are due at fixed times, whether
the service keeps up or not, and their latency counts from when they were due; what finds no free connection waits
inside the client.
"""

import contextlib
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DRIP_S = 0.5

_LENGTH = b"content-length: "


@dataclass
class Outcome:
    """What came of a run."""

    seconds: float
    latencies_ms: dict[int, list[float]] = field(default_factory=dict)  # by status
    without_retry_after: int = 0
    broken: int = 0  # connections that ended in the middle
    unsent: int = 0  # due, but not sent before the end
    connections: int = 0

    @property
    def statuses(self) -> dict[int, int]:
        """How often each status was seen."""
        return {status: len(latencies) for status, latencies in sorted(self.latencies_ms.items())}

    @property
    def goodput(self) -> float:
        """Answers with status 200, a second."""
        return len(self.latencies_ms.get(200, ())) / self.seconds

    def p(self, share: float, *statuses: int) -> float | None:
        """The nearest-rank quantile over these statuses, in milliseconds; None when there were none."""
        found = sorted(itertools.chain.from_iterable(self.latencies_ms.get(status, ()) for status in statuses))
        return round(found[min(len(found) - 1, int(share * len(found)))], 2) if found else None


class _Connection:
    __slots__ = ("buffer", "due_s", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.buffer = b""
        self.due_s: float | None = None


class Generator:
    """Asks one service on this machine for the requests in turn, again and again."""

    def __init__(self, port: int, requests: Sequence[bytes], most_connections: int) -> None:
        self._port = port
        self._requests = itertools.cycle(requests)
        self._most = most_connections
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._free: deque[_Connection] = deque()

    def closed(self, seconds: float) -> Outcome:
        """Every connection asks again as soon as it has its answer."""
        return self._run(seconds, iter(()), again=True)

    def open(self, rate_per_s: float, seconds: float) -> Outcome:
        """So many requests a second, whatever becomes of them."""
        return self._run(seconds, (number / rate_per_s for number in itertools.count()), again=False)

    def _run(self, seconds: float, due: Iterator[float], *, again: bool) -> Outcome:
        outcome = Outcome(seconds)
        waiting: deque[float] = deque()
        start_s = time.perf_counter()
        end_s = start_s + seconds
        if again:
            for _ in range(self._most):
                self._send(self._fresh(), start_s)
        next_s = start_s + next(due, seconds + 1)
        while (now_s := time.perf_counter()) < end_s:
            while next_s <= now_s:
                waiting.append(next_s)
                next_s = start_s + next(due)
            while waiting and (connection := self._idle()):
                self._send(connection, waiting.popleft())
            for number, _ in self._poll.poll(max(0.0, min(next_s, end_s) - time.perf_counter()), 256):
                self._read(self._connections[number], outcome)
                if again and (connection := self._idle()):
                    self._send(connection, time.perf_counter())
        outcome.unsent = len(waiting)
        outcome.connections = len(self._connections)
        self._close()
        return outcome

    def _idle(self) -> _Connection | None:
        if self._free:
            return self._free.popleft()
        return self._fresh() if len(self._connections) < self._most else None

    def _fresh(self) -> _Connection:
        connection = _Connection(self._port)
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def _send(self, connection: _Connection, due_s: float) -> None:
        connection.due_s = due_s
        try:
            connection.socket.send(next(self._requests))
        except BlockingIOError:  # not connected yet
            select.select([], [connection.socket], [], 1)
            connection.socket.send(next(self._requests))

    def _read(self, connection: _Connection, outcome: Outcome) -> None:
        try:
            data = connection.socket.recv(262144)
        except OSError:
            data = b""
        if not data:
            outcome.broken += connection.due_s is not None
            self._end(connection)
            return
        connection.buffer += data
        head = connection.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = connection.buffer[:head].lower() + b"\r"  # nginx writes names of headers its own way
        at = fields.find(_LENGTH) + len(_LENGTH)
        length = int(fields[at : fields.index(b"\r", at)])
        if len(connection.buffer) < head + 4 + length:
            return
        status = int(connection.buffer[9:12])
        assert connection.due_s is not None
        outcome.latencies_ms.setdefault(status, []).append((time.perf_counter() - connection.due_s) * 1000)
        if status in {429, 503}:
            outcome.without_retry_after += b"\r\nretry-after: " not in fields
        connection.buffer, connection.due_s = b"", None
        if b"\r\nconnection: close" in fields:  # nginx ends a connection after a thousand requests
            self._end(connection)
        else:
            self._free.append(connection)

    def _end(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        with contextlib.suppress(ValueError):  # it was not free
            self._free.remove(connection)
        connection.socket.close()

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._free.clear()
        self._poll.close()
        self._poll = select.epoll()


def get(path: str, *headers: str) -> bytes:
    """A GET whose connection is kept."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers]).encode() + b"\r\n\r\n"


@dataclass(frozen=True)
class Party:
    """So many clients that connect, say something and then hold on, with a ``drip`` every half a second."""

    count: int
    said: bytes = b""
    drip: bytes = b""


def hold(port: int, parties: Sequence[Party], seconds_held: float) -> list[list[float]]:
    """Let all of them connect within a second, and give up after so many seconds.

    For each party, the seconds until each connection was ended by the other side; those that were not are left out.
    """
    give_up_s = time.perf_counter() + seconds_held
    poll = select.epoll()
    held: dict[int, tuple[int, socket.socket, float]] = {}
    clients = [number for number, party in enumerate(parties) for _ in range(party.count)]
    for number in clients:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(parties[number].said)
        poll.register(connection.fileno(), select.EPOLLIN)
        held[connection.fileno()] = number, connection, time.perf_counter()
        time.sleep(0.9 / len(clients))
    seconds: list[list[float]] = [[] for _ in parties]
    drip_s = time.perf_counter()
    while held and time.perf_counter() < give_up_s:
        for ended in _ended(poll, held):
            number, connection, since_s = held.pop(ended)
            connection.close()
            seconds[number].append(time.perf_counter() - since_s)
        if time.perf_counter() >= drip_s:
            drip_s += DRIP_S
            for number, connection, _ in held.values():
                with contextlib.suppress(OSError):
                    connection.sendall(parties[number].drip)
    for _, connection, _ in held.values():
        connection.close()
    return seconds


def _ended(poll: select.epoll, held: dict[int, tuple[int, socket.socket, float]]) -> Iterator[int]:
    for number, _ in poll.poll(DRIP_S / 10, 256):
        try:
            data = held[number][1].recv(262144)
        except OSError:
            data = b""
        if not data:
            yield number
