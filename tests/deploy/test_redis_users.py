"""The users of deploy/redis/users.acl, in a real Redis: each component gets by with its own, and with nothing more."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as ConnectionFailed
from support.cluster import Cluster
from support.redis import RedisServer
from support.service import NOTELLM, UNSET, until

from model.note import Note
from service.client import NoteLLMClient
from service.processes.local_redis import redis_binary
from service.store import changes, events, jobs, registry
from service.store.attribution import exposure, quality
from service.store.attribution import log as attribution_log
from service.store.cells import attributes, size
from service.store.cells import events as cell_events
from service.store.cells import registry as cell_registry
from service.store.cells.ring import names
from service.store.cluster.keys import FIRST
from service.store.connection import open_redis, open_sync_redis
from service.store.experiments import watches
from service.store.hashtags import completion, rules
from service.store.notes import RedisStore
from service.store.records import StoredNote, StoredPrediction
from service.store.schema import ACTIVE, NOTE, WATCH
from service.store.scripts import notes

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = {"NOTELLM_WORKER__ADDRESSES": ["worker.sock"], "NOTELLM_INDEX__ADDRESSES": ["shard-0.sock", "shard-1.sock"]}
SCRIPTS = {
    "gateway": [
        notes.PUT,
        notes.DELETE,
        notes.LISTED,
        notes.PAGE,
        events.APPEND,
        events.SEE,
        events.ERASE,
        attribution_log.APPEND,
        attribution_log.FORGET,
        attribution_log.REPLACE,
        exposure.PUBLISH_EXPOSURE,
        quality.ADD,
        watches.WRITE,
        watches.LEASE,
        rules.PUT_RULE,
        rules.REMOVE_RULE,
        completion.RANK_TAGS,
        completion.COUNT_DAYS,
        attributes.CLAIM,
        attributes.RELEASE,
        cell_events.COUNT_SHOWN,
        size.AGREE,
    ],
    "worker": [
        registry.ACTIVATE,
        watches.TAKE_BACK,
        jobs.REGISTER,
        jobs.FILL,
        jobs.PUBLISH,
        jobs.DEAD_LETTER,
        cell_registry.FOLLOW,
        size.AGREE,
    ],
    "indexer": [changes.REFUSE, changes.KEEP, changes.LAG, size.AGREE],
}


class Stack:
    """Redis as compose.yaml starts it, and the real processes on it, each with the user that compose.yaml gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        subprocess.run(["sh", ROOT / "deploy/secrets.sh", folder / "secrets"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.api = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._environment = {
            **UNSET,
            **{name: json.dumps([str(folder / one) for one in places]) for name, places in ADDRESSES.items()},
            "NOTELLM_HTTP__PORT": self.api.rpartition(":")[2],
            "NOTELLM_OPS__PORT": "0",
            "NOTELLM_WORKER__THREADS": "1",
            "NOTELLM_INDEX__SNAPSHOT_DIR": str(folder / "index"),
            "NOTELLM_INDEX__SNAPSHOT_EVERY_S": "0.2",
        }

    def start_redis(self) -> None:
        command = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["redis"]["command"]
        places = {
            "redis-server": str(redis_binary()),
            "/run/secrets/redis-users": str(self.folder / "secrets/redis-users"),
        }
        places["/data"] = str(self.folder)
        here = [
            "--port",
            "0",
            "--unixsocket",
            str(self.folder / "redis.sock"),
            "--logfile",
            str(self.folder / "redis.log"),
        ]
        self.processes["redis"] = subprocess.Popen([*(places.get(word, word) for word in command), *here])
        with self.redis("ops") as client:
            until(lambda: _answers(client))

    def url(self, user: str) -> str:
        password = (self.folder / f"secrets/redis-{user}").read_text().split(":")[2].partition("@")[0]
        return f"unix://{user}:{password}@{self.folder}/redis.sock"

    def redis(self, user: str) -> Redis:
        return Redis.from_url(self.url(user))

    def environment(self, user: str) -> dict[str, str]:
        return {**self._environment, "NOTELLM_REDIS_URL": self.url(user)}

    def start(self, name: str, command: str, **own: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            environment = {**self.environment(command), **own}
            self.processes[name] = subprocess.Popen([*NOTELLM, command], env=environment, stderr=log)

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("users"))
    try:
        made.start_redis()
        yield made
    finally:
        for name in list(made.processes):
            made.end(name)


def test_no_component_is_denied_anything_while_the_service_works(stack):
    with stack.redis("ops") as ops:
        ops.acl_log_reset()
        stack.start("worker", "worker")
        stack.start("gateway", "gateway")
        with NoteLLMClient(stack.api, timeout_s=60, patience_s=60) as notellm:
            until(lambda: _listens(stack.api))
            _use(stack, notellm)
        assert _lists_models(stack)
        _take_back(ops)

        denied = [(entry["username"], entry["context"], entry["object"]) for entry in ops.acl_log()]

    assert denied == []


def _use(stack: Stack, notellm: NoteLLMClient) -> None:
    """Every route, and what components do by themselves: rebuild, snapshot, take over, give up, fill."""
    notes = [{"note_id": f"n{i}", "title": f"Ramen in Osaka, bowl {i}", "hashtags": ["ramen"]} for i in range(40)]
    list(notellm.put_all(notes))
    # Behind the notes, so that each has to read the store first.
    for shard in "01":
        stack.start(f"shard-{shard}", "indexer", NOTELLM_INDEX__NUMBER=shard)
    until(lambda: notellm.status().notes.searchable == len(notes))
    stack.end("worker", signal.SIGKILL)
    notellm.put("n1", {"title": "Waits for the next worker", "content": "It stays a while."}, idempotency_key="once")
    stack.start("worker", "worker")
    notellm.put("n2", {"title": "Three days in Kyoto", "hashtags": ["travel"]}, wait_s=10)
    assert notellm.related("n2", k=5, explain=True).items
    assert notellm.tags("A weekend of ramen", related=3).hashtags
    assert notellm.get("n2").version == 2
    notellm.delete("n3")
    assert notellm.hashtags("ra", limit=1).items[0].tag == "ramen"
    assert notellm.hashtags("rame").items == notellm.hashtags().items[:1]
    notellm.trending()
    assert (notellm.experiments().items, notellm.learning().turns) == ([], [])
    notellm.alias_hashtag("noodles", "ramen")
    notellm.block_hashtag("spam")
    notellm.remove_hashtag_rule("spam")
    assert [rule.tag for rule in notellm.hashtag_rules().items] == ["noodle"]
    event = {"event_id": "e1", "user_id": "u", "note_id": "n2", "type": "click", "ts": time.time()}
    notellm.record([event, event])
    notellm.erase_user("u")
    until(lambda: notellm.status().notes.searchable == len(notes) - 1)
    until(lambda: (stack.folder / "index").is_dir() and any((stack.folder / "index").rglob("CURRENT")))


def _take_back(ops: Redis) -> None:
    """Another model than the worker's was activated: gateways measure, and one orders the way back, which it takes."""
    before = ops.get(ACTIVE)
    fields = {"model": "other", "before": before, "since": int(time.time()), "state": "watching"}
    ops.hset(WATCH, mapping=fields)
    ops.set(ACTIVE, "other")
    until(lambda: ops.hget(WATCH, "baseline"))
    ops.hset(WATCH, "order", "1")
    until(lambda: ops.get(ACTIVE) == before)
    assert ops.hget(WATCH, "state") == b"taken_back"


def _lists_models(stack: Stack) -> bool:
    listed = subprocess.run(
        [*NOTELLM, "model", "list"], env=stack.environment("ops"), capture_output=True, text=True, check=True
    )
    return "active" in listed.stdout


@pytest.mark.parametrize("user", SCRIPTS)
def test_every_command_of_a_components_scripts_is_on_its_list(stack, user):
    """Also those of paths that nobody took above: a script that is denied half-way has done half its work."""
    allowed = set(_rules(user))

    called = {word.lower() for script in SCRIPTS[user] for word in re.findall(r"redis\.call\('(\w+)'", _own(script))}

    assert called <= allowed
    assert called


def _own(script: str) -> str:
    """Without the shared functions that the rest of it never calls."""
    function = re.compile(r"^local function (\w+)(?:[^\n]* end$|.*?^end$)", flags=re.MULTILINE | re.DOTALL)
    functions = {found[1]: found[0] for found in function.finditer(script)}
    own, called = function.sub("", script), {""}
    while called:
        called = {name for name in functions if re.search(rf"\b{name}\(", own)}
        own += "".join(functions.pop(name).partition("(")[2] for name in called)
    return own


def _rules(user: str) -> list[str]:
    text = (ROOT / "deploy/redis/users.acl").read_text()
    own = re.search(rf"^user {user} .*?(?=^$|^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\+([\w|]+)", own[0])


@pytest.mark.parametrize("user", ["gateway", "worker", "indexer", "ops"])
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "CONFIG SET maxmemory 1",
        "SHUTDOWN NOSAVE",
        "ACL LIST",
        "CLIENT KILL TYPE normal",
        "REPLICAOF 127.0.0.1 1",
        "MIGRATE 127.0.0.1 1 notellm:v1:active 0 1",
        "GET elsewhere",
    ],
)
def test_nobody_may_do_what_no_component_needs(stack, user, command):
    with stack.redis(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("gateway", "XADD notellm:v1:dead * id n1"),
        ("gateway", "SET notellm:v1:active other"),
        ("gateway", "HSET notellm:v1:experiments e record"),
        ("gateway", "XREADGROUP GROUP workers w STREAMS notellm:v1:jobs:m >"),
        ("worker", "SET notellm:v1:note:n1 forged"),
        ("worker", "XREAD STREAMS notellm:v1:events 0"),
        ("worker", "DEL notellm:v1:note:n1"),
        ("indexer", "XADD notellm:v1:jobs:m * id n1"),
        ("indexer", "SET notellm:v1:note:n1 forged"),
        ("indexer", "HSET notellm:v1:readings:m n1 forged"),
    ],
)
def test_a_component_may_not_do_the_work_of_another(stack, user, command):
    with stack.redis(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split(" "))


def test_after_a_restart_everything_that_was_acknowledged_is_there(stack):
    """Redis reads its log of writes as the user `default`: what that may not do would be dropped without a word."""
    for name in [name for name in stack.processes if name != "redis"]:
        stack.end(name)
    with stack.redis("gateway") as gateway, gateway.pipeline(transaction=True) as pipe:
        pipe.set("notellm:v1:note:kept", "in a transaction")
        pipe.set("notellm:v1:answer:kept", "too")
        pipe.execute()
    before = _everything(stack)
    stack.end("redis", signal.SIGKILL)

    stack.start_redis()

    assert _everything(stack) == before
    assert b"notellm:v1:note:kept" in before
    with stack.redis("ops") as ops:
        assert ops.acl_log() == []


def _everything(stack: Stack) -> dict[bytes, object]:
    with stack.redis("ops") as ops:
        return {key: _value(ops, key) for key in ops.scan_iter(count=1000)}


def _value(ops: Redis, key: bytes) -> object:
    match ops.type(key):
        case b"string":
            return ops.get(key)
        case b"hash":
            return ops.hgetall(key)
        case b"set":
            return ops.smembers(key)
        case b"zset":
            return ops.zrange(key, 0, -1, withscores=True)
        case b"stream":
            return ops.xrange(key)
        case other:
            raise AssertionError(other)


def test_without_a_password_redis_only_says_that_it_is_there(stack):
    with Redis(unix_socket_path=str(stack.folder / "redis.sock")) as nobody, pytest.raises(AuthenticationError):
        nobody.get("notellm:v1:active")
    with Redis(unix_socket_path=str(stack.folder / "redis.sock"), username="health", password="none") as prober:  # noqa: S106
        assert prober.ping()
        with pytest.raises(NoPermissionError):
            prober.get("notellm:v1:active")


def test_secrets_are_random_closed_to_others_and_made_once(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    made = []
    for folder in folders:
        subprocess.run(["sh", ROOT / "deploy/secrets.sh", folder], check=True, capture_output=True)
        made.append({path.name: path.read_text() for path in folder.iterdir()})
    assert folders[0].stat().st_mode & 0o777 == 0o700
    assert made[0] == made[2]
    assert all(made[0][name] != made[1][name] for name in made[0])
    urls = [text for name, text in made[0].items() if name.startswith("redis-") and name != "redis-users"]
    passwords = [url.split(":")[2].partition("@")[0] for url in urls]
    assert all(password not in made[0]["redis-users"] for password in passwords)
    assert len(set(passwords)) == len(passwords) == 4


async def test_on_a_cluster_each_component_gets_by_with_its_own_and_with_no_more(tmp_path):
    subprocess.run(["sh", ROOT / "deploy/secrets.sh", tmp_path / "secrets", "NODES"], check=True)
    secrets = {
        user: (tmp_path / f"secrets/redis-{user}").read_text().strip() for user in (*SCRIPTS, "replica", "cluster")
    }
    passwords = {user: url.split(":")[2].partition("@")[0] for user, url in secrets.items()}
    follows = ("--masteruser", "replica", "--masterauth", passwords["replica"])
    users = ("--aclfile", str(tmp_path / "secrets/redis-users"))
    cluster = Cluster(*users, *follows, user=("cluster", passwords["cluster"]))
    try:
        cluster.start()
        urls = {user: url.replace("NODES", cluster.url.partition("//")[2]) for user, url in secrets.items()}
        await _pass_a_note_on(urls)
        cluster.fail_over()
        cluster.settle()
        cluster.move()
        await _pass_a_note_on(urls)
        for user in SCRIPTS:
            with Redis(port=cluster.primary().port, username=user, password=passwords[user]) as client:
                for key in ("notellm:v1:active", "{c00}:notellm:v1:active", "notellm:v1:{c01}:active"):
                    with pytest.raises(NoPermissionError):
                        client.get(key)
    finally:
        cluster.close()


async def test_with_several_cells_on_one_redis_each_has_the_same_rights(tmp_path):
    """An indexer that is the first to start writes the number of cells down."""
    environment = os.environ | {"NOTELLM_CELLS": "3"}
    subprocess.run(["sh", ROOT / "deploy/secrets.sh", tmp_path / "secrets"], env=environment, check=True)
    passwords = {
        user: (tmp_path / f"secrets/redis-{user}").read_text().split(":")[2].partition("@")[0] for user in SCRIPTS
    }
    server = RedisServer()
    server.start()
    urls = {user: f"unix://{user}:{password}@{server.socket}" for user, password in passwords.items()}
    try:
        with Redis(unix_socket_path=str(server.socket)) as client:
            for line in (tmp_path / "secrets/redis-users").read_text().splitlines():
                client.execute_command("ACL SETUSER", *line.split()[1:])
        async with open_redis(urls["indexer"]) as redis:
            await size.check_size(redis, 3)
        for cell in names(3):
            await _pass_a_note_on(urls, cell, replicas=0)
            async with open_redis(urls["worker"], cell=cell) as redis:
                with pytest.raises(NoPermissionError):
                    await redis.set(f"{NOTE}n1", "forged")
    finally:
        server.close()


async def _pass_a_note_on(urls: dict[str, str], cell: str = FIRST, replicas: int = 1) -> None:
    """From a write over the worker to an index."""
    gateway, worker = (open_redis(urls[user], replicas=replicas, cell=cell) for user in ("gateway", "worker"))
    [version] = await RedisStore(gateway, 10).put([StoredNote(Note("n1", f"Kyoto {time.time()}", ""), 0)])
    queue = jobs.JobQueue(worker, "w", "00000000000000aa", 4)
    await queue.open()
    [claimed] = await queue.claim(10, 0.1)
    said = StoredPrediction(version, "00000000000000aa", np.eye(4, dtype=np.float32)[0], (), None)
    assert await queue.publish([(claimed, said)]) == 1
    with open_sync_redis(urls["indexer"], cell=cell) as redis:
        stream = changes.RedisChangeStream(redis, "00000000000000aa")
        assert stream.read("0-0", 10, 0)[-1].version == version
        cursor, everything = stream.everything()
        assert [change.id for change in everything] == ["n1"]
        stream.keep(cursor)
    for client in (gateway, worker):
        await client.aclose()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (ConnectionFailed, FileNotFoundError):
        time.sleep(0.05)
        return False


def _listens(api: str) -> bool:
    try:
        return httpx.get(f"{api}/openapi.json").status_code == 200
    except httpx.TransportError:
        time.sleep(0.1)
        return False
