"""Child processes: started, watched, started again, and stopped in order.

Children run in sessions of their own, so that ctrl-C reaches the supervisor alone and the order of stopping is kept. If
the supervisor is killed, the kernel ends them.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
USER_MISTAKE = 2
UMASK = 0o077  # files of a service hold the text of notes
LOG_BYTES = 64 << 20
_END_BYTES, _MOST_CHARS = 8192, 300
_PREFIX = re.compile(r"^(notellm: |\d+:[A-Z] .{,40}? [#*] )")  # of our lines, and of Redis' with process and time
_TICK_S = 0.1
GRACE_S = 28.0
_LOOK_EVERY_S = 5.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 5.0
_HEALTHY_S = 30.0


@dataclass(frozen=True, slots=True)
class Role:
    """The command of one child. Higher ranks are stopped first. Its output goes to the file ``log``, if set.

    ``explains``: whether the last line of that log says why the child ended, as Redis' does.
    """

    name: str
    command: Sequence[str]
    rank: int
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    explains: bool = False

    @property
    def last_line(self) -> str:
        """The last line of its log: the reason when it cannot run as it is set up."""
        lines = _end_of(self.log).splitlines() if self.log else []
        return _PREFIX.sub("", lines[-1])[:_MOST_CHARS] if lines else f"{self.name} cannot run as it is set up"


class Child:
    """One process and its restarts. It inherits the open file ``keep``, if given."""

    def __init__(self, role: Role, keep: IO[str] | None = None) -> None:
        self.role = role
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._not_before = 0.0

    def tend(self) -> int | None:
        """Start the process if it does not run and its pause is over; its exit status when it just ended."""
        if self.role.log:
            rotate(self.role.log)
        if self._process is None:
            if time.monotonic() >= self._not_before:
                self._start()
            return None
        status = self._process.poll()
        if status is not None:
            self._process = None
            if time.monotonic() - self._started > _HEALTHY_S:
                self._pause_s = _FIRST_PAUSE_S
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
        return status

    def terminate(self) -> None:
        """Send SIGTERM, if it runs."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, until: float) -> None:
        """Wait until it ended; kill it at ``until``, on the monotonic clock."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{self.role.name} does not stop; killing it")
            self._process.kill()
            self._process.wait()
        self._process = None

    def _start(self) -> None:
        self._started = time.monotonic()
        with self.role.log.open("ab") if self.role.log else nullcontext() as log:
            self._process = subprocess.Popen(  # noqa: S603
                self.role.command,
                env={**os.environ, **self.role.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._keep.fileno()] if self._keep else [],
                preexec_fn=end_with(os.getpid()),
                umask=UMASK,
            )


class Supervisor:
    """Keeps children running until a signal, then stops them rank by rank; kills a rank after ``grace_s``."""

    def __init__(self, children: Sequence[Child], grace_s: float = GRACE_S) -> None:
        self._children = children
        self._grace_s = grace_s
        self._stopping = False

    def run(self, ready: Callable[[], bool], announce: Callable[[], None]) -> int:
        """Tend the children until SIGINT, SIGTERM or SIGHUP; ``announce`` once ``ready``. Returns the exit status.

        ``ready`` is asked from then on, too, now and then: it may have something to say.

        A child that ends with status 2 before all were ready cannot run as it is set up: then all stop, with 2. Later
        it is started again, as after any other status.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)
        announced, next_look = False, 0.0
        try:
            while not self._stopping:
                for child in self._children:
                    status = child.tend()
                    if status == USER_MISTAKE and not announced:
                        if child.role.log:  # without a log, it shares our standard error
                            say(child.role.last_line)
                        return USER_MISTAKE
                    if status is not None:
                        cause = child.role.last_line if status == USER_MISTAKE else _cause(status)
                        if child.role.explains and status > 0:
                            cause = f"{cause}: {child.role.last_line}"
                        say(f"{child.role.name} ended ({cause}); starting it again")
                if time.monotonic() >= next_look:
                    if ready() and not announced:
                        announced = True
                        announce()
                    next_look = time.monotonic() + (_LOOK_EVERY_S if announced else 0)
                time.sleep(_TICK_S)
        finally:
            self._stop_children()
        return 0

    def _request_stop(self, *_: object) -> None:
        self._stopping = True

    def _stop_children(self) -> None:
        for rank in sorted({child.role.rank for child in self._children}, reverse=True):
            together = [child for child in self._children if child.role.rank == rank]
            until = time.monotonic() + self._grace_s
            for child in together:
                child.terminate()
            for child in together:
                child.wait(until)


def rotate(log: Path, most_bytes: int = LOG_BYTES) -> None:
    """Move what is in a log to ``<log>.1`` when it is long, in the place of what was there before.

    Its writers go on at the start of the same file; what one writes in that moment may be lost.
    """
    try:
        if log.stat().st_size > most_bytes:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    except OSError:  # a full disk, or no log yet: the children matter more
        return


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(-min(_END_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def end_with(parent: int) -> Callable[[], None] | None:
    """A hook for a child to call before its program, so that the kernel sends it SIGTERM when ``parent`` dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl
            os._exit(1)

    return before_exec


def say(message: str) -> None:
    """Print a line on standard error."""
    print(f"notellm: {message}", file=sys.stderr, flush=True)  # noqa: T201


def _cause(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
