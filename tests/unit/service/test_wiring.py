"""What the processes import."""

import subprocess
import sys


def test_workers_and_indexers_need_no_package_of_the_gateway():
    """Their images have none of them."""
    script = """
import sys
sys.modules |= dict.fromkeys(["fastapi", "starlette", "uvicorn", "httptools", "uvloop"])
from service import logs
from service.cli import main
from service.store import changes, jobs, registry
from service.store.rollout import gap
from service.wiring import indexer, rollout, worker
from service.worker import category_sampler, drafts, engine, worker
from service.shard import indexes, store_metrics
from service.backup import backup, events, restore
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0
