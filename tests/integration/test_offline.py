"""The service with its network cut off but for loopback: nothing is fetched when it starts, reads a note or a draft."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SCRIPT = """
import errno, fcntl, socket, struct, tempfile
from pathlib import Path
from support.service import Service, running
from service.settings import MINI

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as probe:
    fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    assert probe.connect_ex(("192.0.2.1", 80)) == errno.ENETUNREACH
with tempfile.TemporaryDirectory() as folder, running(Service(Path(folder), MINI)) as service:
    with service.client() as notellm:
        print(notellm.put("rye", {"title": "Rye sourdough in a cold kitchen"}, wait_s=10).status)
        print(notellm.tags("Rye sourdough", "The starter needs two days.").category.name)
"""


def test_a_worker_starts_and_reads_without_a_network():
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["searchable", "Baking"]
