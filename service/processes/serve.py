"""`notellm serve`: every process of the service on one machine, started, watched and stopped in order.

::

    state_dir/lock      locked by the supervisor and by all its children: one service a folder
    state_dir/redis/    append-only file and log of the private Redis
    state_dir/index/    snapshots, one folder a shard and in it one a model
    state_dir/logs/     the log of each process since this start, one JSON object a line
    state_dir/models/   base models and checkpoints that were made of an adapter
    state_dir/run  ->   a short private folder with the sockets, and <role>.ops with each operations port
"""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from service.keys import open_keyring
from service.processes.children import UMASK, Child, Role, Supervisor, end_with, say
from service.processes.health import NO_WORKER, Readiness, readiness_at
from service.processes.local_redis import redis_binary, redis_command
from service.processes.redis_check import RedisCheck
from service.processes.state import Place, close_to_others, free_port, lock_state, runtime_folder, usable
from service.setting_groups import is_loopback
from service.settings import Settings, SetupError, reason_of
from service.store.connection import redis_url

READY = """
NoteLLM is ready.

  API         {api}
  console     {api}/
  operations  {ops}  (/livez, /readyz, /metrics)
  state       {state}  (logs, Redis, snapshots)
  keys        {keys}

Try it:

{related}  curl -X POST {api}/notes/tags -H 'Content-Type: application/json' \\
       -d '{{"title": "A weekend of ramen in Osaka", "content": "Four bowls in two days, ranked.", "related": 3}}'
  curl -X PUT '{api}/notes/new1?wait=10' -H 'Content-Type: application/json' \\
       -d '{{"title": "Three days in Kyoto", "content": "Temples, markets and quiet gardens.", "hashtags": ["travel"]}}'
  curl '{api}/notes/new1/related?k=10'

{hint}Ctrl-C stops everything; {promise}.
"""

KEPT = "nothing that was acknowledged is lost"
NOT_KEPT = "what was acknowledged may be lost, see the warning above"
RELATED = "  curl '{api}/notes/travel-01/related?k=10'\n"
HINT = "`notellm load samples` fills it with sample notes. "
NO_KEYS = "none: anybody on this machine may read and write (`notellm keys create` makes one)"
OPEN = "none, and it listens beyond this machine: anybody who reaches it may read and write"
KEYS = '{file}  (add -H "Authorization: Bearer $NOTELLM_KEY" to what follows)'


class GatewayReadiness:
    """Polls /readyz of the gateway, and prints what is missing or wrong whenever that changes.

    ``finds_notes``: nothing is missing, or a worker at most, whose model is being opened.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._waiting = ""
        self.finds_notes = False
        self.warnings: list[str] = []

    def __call__(self) -> bool:
        """True when the gateway is ready."""
        found = readiness_at(self._host, self._port, "the gateway")
        for line in found.warnings:
            if line not in self.warnings:
                say(f"warning: {line}")
        waiting = ", ".join(found.missing)
        if waiting and waiting != self._waiting:
            say(f"waiting for: {waiting}")
        self._waiting, self.warnings = waiting, found.warnings
        self.finds_notes = all(name.startswith(NO_WORKER) for name in found.missing)
        return not waiting


class SampleLoad:
    """A process of `notellm load samples`: started by the first call."""

    def __init__(self, url: str) -> None:
        self._command = [sys.executable, "-P", "-m", "service.cli.main", "load", "samples", "--url", url]
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> bool:
        """True when the process ended, with success or not: it prints its own errors."""
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                self._command, stdin=subprocess.DEVNULL, preexec_fn=end_with(os.getpid())
            )
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def serve(settings: Settings, *, samples: bool = False) -> int:
    """Run everything until a signal comes, with the sample notes if asked for; returns the exit status.

    Raises:
        SetupError: if the state folder or a port is in use or unusable, or there is no checkpoint, no redis-server, or
            none on which the service works.
    """
    _check_checkpoint(settings.checkpoint, "NOTELLM_CHECKPOINT")
    if settings.candidate is not None:
        _check_checkpoint(settings.candidate, "NOTELLM_CANDIDATE")
    if settings.redis_url is not None:
        asyncio.run(RedisCheck(redis_url(settings), Readiness()).start())
    open_keyring(settings)
    if settings.audit_file:
        _check_audit(settings.audit_file)
    state = settings.state_dir.absolute()
    os.umask(UMASK)
    with ExitStack() as stack:
        with usable(state):
            lock = stack.enter_context(lock_state(state))
            for folder in close_to_others(state):
                say(f"{folder} was open to other users of this machine; it is closed now (mode 700)")
            runtime = stack.enter_context(runtime_folder(state))
        port = free_port(settings.http.host, settings.http.port, "NOTELLM_HTTP__PORT")
        ops_port = free_port(settings.ops.host, settings.ops.port, "NOTELLM_OPS__PORT")
        place = Place(state, runtime, port, ops_port)
        # The folder stays locked while any child lives: no second Redis may open the same files.
        with usable(state):
            children = [Child(role, lock) for role in roles(settings, place)]
        ready = GatewayReadiness(_reachable(settings.ops.host), ops_port)
        api = _url(settings.http.host, port)
        text = partial(
            READY.format,
            api=api,
            ops=_url(settings.ops.host, ops_port),
            state=state,
            keys=_keys(settings),
            related=RELATED.format(api=api) if samples else "",
            hint="" if samples else HINT,
        )
        load = SampleLoad(api)
        try:
            return Supervisor(children).run(
                lambda: all((ready(), not samples or (ready.finds_notes and load()))),
                lambda: print(text(promise=NOT_KEPT if ready.warnings else KEPT), flush=True),  # noqa: T201
            )
        finally:
            load.stop()


def roles(settings: Settings, place: Place) -> list[Role]:
    """The processes of `serve`, in the order of starting."""
    environment = _environment(settings, place)
    all_roles: list[Role] = []
    if settings.redis_url is None:
        folder = place.state / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        environment["NOTELLM_REDIS_URL"] = f"unix://{place.redis_socket}"
        command = redis_command(redis_binary(), place.redis_socket, folder)
        all_roles.append(Role("redis", command, rank=0, log=folder / "redis.log", explains=True))
    for shard in range(len(settings.index.addresses)):
        own = {"NOTELLM_INDEX__NUMBER": str(shard)}
        all_roles.append(_role(place, f"indexer-{shard}", "indexer", 1, environment | own))
    for number in range(_workers(settings)):
        own = {"NOTELLM_WORKER__NUMBER": str(number)}
        if settings.candidate is not None and number == len(settings.worker.addresses):
            own["NOTELLM_CHECKPOINT"] = str(settings.candidate.absolute())
        all_roles.append(_role(place, f"worker-{number}", "worker", 2, environment | own))
    own = {"NOTELLM_HTTP__PORT": str(place.port), "NOTELLM_OPS__PORT": str(place.ops_port)}
    all_roles.append(_role(place, "gateway", "gateway", 3, environment | own))
    return all_roles


def _role(place: Place, name: str, command: str, rank: int, environment: dict[str, str]) -> Role:
    own = {"NOTELLM_OPS__PORT_FILE": str(place.runtime / f"{name}.ops")}
    # -P: a folder named "service" in the working directory must not be imported.
    log = place.state / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # it would grow for ever
    return Role(name, [sys.executable, "-P", "-m", "service.cli.main", command], rank, own | environment, log)


def _environment(settings: Settings, place: Place) -> dict[str, str]:
    workers = [str(place.runtime / f"worker-{number}.sock") for number in range(_workers(settings))]
    shards = [str(place.runtime / f"shard-{number}.sock") for number in range(len(settings.index.addresses))]
    own = {"snapshot_dir": place.state / "index", "serving_dir": place.state / "serving"}
    for chosen in (settings.index, settings.worker):
        own |= {name: getattr(chosen, name).absolute() for name in own.keys() & chosen.model_fields_set}
    files = {"NOTELLM_KEYS_FILE": settings.keys_file, "NOTELLM_AUDIT_FILE": settings.audit_file}
    return {name: str(file.absolute()) for name, file in files.items() if file} | {
        "NOTELLM_STATE_DIR": str(place.state),
        "NOTELLM_CHECKPOINT": str(settings.checkpoint.absolute()),
        "NOTELLM_WORKER__ADDRESSES": json.dumps(workers),
        "NOTELLM_INDEX__ADDRESSES": json.dumps(shards),
        "NOTELLM_WORKER__SERVING_DIR": str(own["serving_dir"]),
        # Beside a candidate, a worker that is started again would undo what was decided meanwhile.
        "NOTELLM_WORKER__TAKES_OVER": str(int(settings.candidate is None)),
        "NOTELLM_INDEX__SNAPSHOT_DIR": str(own["snapshot_dir"]),
        "NOTELLM_OPS__PORT": "0",
    }


def _workers(settings: Settings) -> int:
    """How many workers there are: those of the model, and one of the candidate."""
    return len(settings.worker.addresses) + (settings.candidate is not None)


def _check_checkpoint(folder: Path, variable: str) -> None:
    from model.network.checkpoint import CheckpointError, described

    try:
        described(folder)
    except CheckpointError as error:
        raise SetupError(f"{error}; {variable} names the folder of a model") from error


def _check_audit(file: Path) -> None:
    try:
        file.open("ab").close()
    except OSError as error:
        raise SetupError(f"NOTELLM_AUDIT_FILE cannot be written: {reason_of(error)}") from error


def _keys(settings: Settings) -> str:
    if settings.keys_file:
        return KEYS.format(file=settings.keys_file.absolute())
    return NO_KEYS if is_loopback(settings.http.host) else OPEN


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _url(host: str, port: int) -> str:
    shown = _reachable(host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
