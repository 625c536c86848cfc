"""Child processes: what they write is their user's own."""

import time

from service.processes.children import Child, Role


def test_what_a_child_writes_is_closed_to_other_users(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    child = Child(Role("writer", ["/bin/sh", "-c", f"touch {file} && mkdir {folder}"], rank=0))

    child.tend()
    child.wait(time.monotonic() + 10)

    assert [path.stat().st_mode & 0o777 for path in (file, folder)] == [0o600, 0o700]
