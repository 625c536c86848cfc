"""Shards and replicas of the index as real processes, following one Redis."""

import json
import os
import signal
import subprocess
from pathlib import Path

from support.service import NOTELLM


class Indexers:
    """Every replica of every shard, by (shard, replica); started and ended one by one."""

    def __init__(self, folder: Path, redis_url: str, shards: int, replicas: int = 1) -> None:
        self.folder = folder
        self.addresses = [
            ",".join(str(folder / f"{shard}-{replica}.sock") for replica in range(replicas)) for shard in range(shards)
        ]
        self.everywhere = [(shard, replica) for shard in range(shards) for replica in range(replicas)]
        self.environment = {
            "NOTELLM_REDIS_URL": redis_url,
            "NOTELLM_INDEX__ADDRESSES": json.dumps(self.addresses),
            "NOTELLM_INDEX__SNAPSHOT_DIR": str(folder / "snapshots"),
            "NOTELLM_INDEX__SNAPSHOT_EVERY_S": "0.2",
            "NOTELLM_OPS__PORT": "0",
        }
        self.processes: dict[tuple[int, int], subprocess.Popen[bytes]] = {}

    def start(self, shard: int, replica: int = 0) -> None:
        """Start one; it answers some time later."""
        own = {"NOTELLM_INDEX__NUMBER": str(shard), "NOTELLM_INDEX__REPLICA": str(replica)}
        with (self.folder / f"{shard}-{replica}.log").open("ab") as log:
            environment = {**os.environ, **self.environment, **own}
            self.processes[shard, replica] = subprocess.Popen([*NOTELLM, "indexer"], env=environment, stderr=log)

    def end(self, shard: int, replica: int = 0, how: signal.Signals = signal.SIGKILL) -> None:
        """kill -9, or another way to end it."""
        process = self.processes.pop((shard, replica))
        process.send_signal(how)
        process.wait()

    def end_all(self) -> None:
        """Those that still run."""
        for place in list(self.processes):
            self.end(*place)
