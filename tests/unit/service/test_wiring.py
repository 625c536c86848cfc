"""What the processes import."""

import subprocess
import sys


def test_workers_and_indexers_need_no_package_of_the_gateway():
    """Their images have none of them."""
    script = """
import sys
sys.modules |= dict.fromkeys(["fastapi", "starlette", "uvicorn", "httptools", "uvloop"])
from service import cli, logs, wiring
from service import drafts, engine, jobs, sampling, worker
from service import changes, indexes, registry, rollout, store_metrics
from service import backup, event_export, restore
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0
