"""A wall clock of our processes that can jump, also that of Redis; the machine's own stays as it is.

A library of forty lines, `clock.c`, stands before the C library's functions. libfaketime 0.9.10 does the same and more,
and with it Redis 6.2 hangs and `time.sleep` of Python breaks.
"""

import shutil
import struct
import subprocess
from pathlib import Path


class Clock:
    """Processes with its ``environment`` take their time from it."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        assert compiler, "a clock that jumps needs a C compiler: apt-get install gcc libc6-dev"
        library = folder / "clock.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
        self._file = folder / "ahead"
        self._file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "AHEAD_FILE": str(self._file)}

    def jump(self, ahead_s: int) -> None:
        """From now on it is so many seconds ahead of the machine's clock, or behind."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", ahead_s))
