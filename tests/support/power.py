"""A Redis whose machine can lose its power: what it wrote since the last fsync is forgotten.

strace notes each write and fsync of the append-only file. After kill -9 the file still has what the kernel held in
memory; `PowerCut.cut` takes away what came after the last fsync that had begun after it and ended. That is the least
that a disk keeps its word for. Rewrites of the file are not followed: none happens below 64 MB.
"""

import re
import shutil
from pathlib import Path

from support.redis import RedisServer
from support.service import until

# Processes are padded to five characters: those below 10,000 have more than one space behind them.
_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\(\d+<(?P<path>[^>]*)>")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>")
_RESULT = re.compile(r"= (-?\d+)[^=]*$")


class PowerCut(RedisServer):
    """A `RedisServer` under strace."""

    def __init__(self, appendfsync: str) -> None:
        strace = shutil.which("strace")
        assert strace, "the simulated power cut needs strace: apt-get install strace"
        traced = "trace=write,writev,pwrite64,fsync,fdatasync"
        command = [strace, "-D", "-f", "-y", "-q", "--seccomp-bpf", "-s", "0", "-e", traced, "-e", "signal=none"]
        super().__init__("--appendfsync", appendfsync)
        self._before = [*command, "-o", str(self._trace)]

    @property
    def _trace(self) -> Path:
        return self.folder / "trace"

    def cut(self) -> int:
        """kill -9, and the disk as of its last fsync; how many bytes that took away."""
        assert self.process
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [tracer] = re.findall(r"^TracerPid:\s+(\d+)", status, re.MULTILINE)
        self.kill()
        until(lambda: _ended(tracer))  # then all of the trace is written
        [log] = [*self.folder.glob("appendonlydir/*.incr.aof"), *self.folder.glob("appendonly.aof")]  # Redis 7, and 6
        trace = self._trace.read_text(errors="replace")
        written, synced = bytes_of(trace, log.name)
        assert written, f"strace saw nothing written to {log}, {len(trace)} characters: {trace[:2000]}"
        forgotten = written - synced
        size = log.stat().st_size
        with log.open("r+b") as file:
            file.truncate(size - forgotten)
        self._trace.unlink()
        return forgotten


def _ended(process: str) -> bool:
    try:
        return not Path(f"/proc/{process}/cmdline").read_bytes()  # of a zombie
    except OSError:
        return True


def bytes_of(trace: str, name: str) -> tuple[int, int]:
    """Bytes written to the file, and how many of them when the last fsync of it began that also ended."""
    written = synced = 0
    begun: dict[str, int] = {}  # of a thread's fsync that has not ended: what was written when it began
    writing: set[str] = set()
    for line in trace.splitlines():
        if (call := _CALL.match(line)) and call["path"].endswith(name):
            if "sync" in call["name"]:
                begun[call["pid"]] = written
            else:
                writing.add(call["pid"])
            who = call["pid"]
        elif resumed := _RESUMED.match(line):
            who = resumed["pid"]
        else:
            continue
        if line.endswith("<unfinished ...>"):
            continue
        result = int(found[1]) if (found := _RESULT.search(line)) else -1
        if who in writing:
            writing.discard(who)
            written += max(result, 0)
        elif who in begun:
            before = begun.pop(who)
            synced = synced if result else max(synced, before)
    return written, synced
