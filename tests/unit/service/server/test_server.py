"""How a gateway listens."""

import resource
import subprocess
import sys


def test_as_many_files_may_be_open_as_the_system_lets_it():
    script = (
        "import resource; from service.server.server import allow_connections\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "allow_connections(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert int(done.stdout) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
