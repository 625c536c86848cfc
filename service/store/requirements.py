"""What a Redis must be, and what is wrong with the one that is there: the only module that knows these rules.

`UNUSABLE` are the causes for which nothing of the service works, so that a process refuses to start. With an `UNSAFE`
one it starts: what was acknowledged may be lost, without replicas that writes wait for nothing is, or one cell that
ends takes the others along. Every line says what is wrong and what to do, and quotes nothing of an error that may be a
password or the text of a note.
"""

import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.store.schema import STORE_FORMAT

UNUSABLE = (
    "password",
    "right",
    "database",
    "certificate",
    "protocol",
    "sentinel",
    "cluster",
    "replica",
    "version",
    "format",
)
UNSAFE = ("eviction", "persistence", "fsync", "replicas", "coverage")
OLDEST = (6, 2)
APPENDFSYNC, FULL_COVERAGE = "appendfsync", "cluster-require-full-coverage"

REMEDY = "give it the rights that deploy/redis/users.acl lists"
_LINES = {
    "password": "Redis refuses the user or the password in NOTELLM_REDIS_URL",
    "database": "Redis has no database of the number in NOTELLM_REDIS_URL",
    "certificate": "the TLS connection to Redis fails; NOTELLM_REDIS_URL may name the file of an authority to trust as "
    "?ssl_ca_certs=FILE",
    "protocol": "what answers at NOTELLM_REDIS_URL does not speak as Redis does",
    "sentinel": "NOTELLM_REDIS_URL names a Sentinel: name the primary that it watches, or a proxy that follows it",
    "cluster": "NOTELLM_REDIS_URL names a Redis Cluster as if it were one Redis: write redis+cluster://HOST:PORT,HOST:PORT",
    "replica": "NOTELLM_REDIS_URL names a replica, which takes no writes: name its primary",
    "format": f"the store is of a newer release; this one reads format {STORE_FORMAT}: install the newer one, or "
    "restore a backup of before the upgrade into an empty store",
}
_NO_CLUSTER = "NOTELLM_REDIS_URL names a Redis Cluster, and what answers is one Redis: write redis://HOST:PORT"
_NOT_GIVEN = "Redis asks for a password, and NOTELLM_REDIS_URL has none"
# What Redis says, by cause; redis-py takes off the first word where it has a class for it.
_SAID = {
    "database": ("DB index is out of range",),
    "replica": ("read only replica", "Link with MASTER is down"),
    "sentinel": ("unknown command 'SELECT'", "unknown command `SELECT`"),
    "cluster": ("SELECT is not allowed in cluster mode", "MOVED ", "CROSSSLOT ", "CLUSTERDOWN "),
}
# Errors of a script that lacks rights: of Redis up to 7.0, and later.
_DENIED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
_COMMAND = re.compile(r"no permissions to run the '([\w|]+)' command")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, by its cause, in one line."""

    cause: str
    line: str


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong with a Redis, the worst first; ``unknown`` are the causes that its user may not find out."""

    problems: tuple[Problem, ...] = ()
    unknown: frozenset[str] = frozenset()

    @property
    def unusable(self) -> str:
        """Why nothing works on it; empty when it can be used."""
        return next((problem.line for problem in self.problems if problem.cause in UNUSABLE), "")

    @property
    def lines(self) -> list[str]:
        """One for each problem."""
        return [problem.line for problem in self.problems]


def report(
    info: Mapping[str, Any] | None,
    settings: Mapping[str, str] | None,
    *,
    cluster: bool = False,
    replicas: int = 0,
    cells: int = 1,
) -> Report:
    """The report on a Redis of which this is INFO and these are its settings; None where they may not be asked.

    It has to be part of a cluster or not, and writes wait for so many of its replicas; so many ``cells`` are on the
    cluster.
    """
    if info is None:
        return Report(unknown=frozenset((*UNSAFE, "sentinel", "cluster", "replica", "version")))
    if info.get("redis_mode") == "sentinel":  # it has none of the other figures
        return Report((Problem("sentinel", _LINES["sentinel"]),))
    known = settings or {}
    problems = (
        *_unusable(info, cluster=cluster),
        *_unsafe(info, known.get(APPENDFSYNC)),
        *_lacking(info, replicas),
        *_uncovered(known, cells),
    )
    asked = {"fsync": (APPENDFSYNC, info.get("aof_enabled")), "coverage": (FULL_COVERAGE, cells > 1)}
    return Report(problems, frozenset(cause for cause, (name, counts) in asked.items() if counts and name not in known))


def written_in(kept: bytes | None, *, denied: bool = False) -> Report:
    """The report on a store that says this of its format."""
    if denied:
        return Report(unknown=frozenset({"format"}))
    return Report() if kept in (None, b"%d" % STORE_FORMAT) else Report((Problem("format", _LINES["format"]),))


def joined(reports: Sequence[Report]) -> Report:
    """What is wrong with any of several, in the order of the first; once where it is the same."""
    problems = dict.fromkeys(problem for report in reports for problem in report.problems)
    return Report(tuple(problems), frozenset().union(*(report.unknown for report in reports)))


def refusal(error: BaseException | None) -> Problem | None:
    """The cause for which Redis, or the way to it, answered with this error; None when it tells of no lasting one."""
    while error is not None:
        if problem := _refused(error):
            return problem
        error = error.__cause__  # redis-py wraps what comes up while it connects to a unix socket
    return None


def _refused(error: BaseException) -> Problem | None:
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        ClusterCrossSlotError,
        InvalidResponse,
        MovedError,
    )

    message = str(error)
    if isinstance(error, (AuthenticationError, AuthorizationError)) or message.startswith("NOAUTH "):
        return Problem("password", _NOT_GIVEN if "Authentication required" in message else _LINES["password"])
    if denied := _denied(error):
        return Problem("right", f"Redis denies its user {denied}: {REMEDY}")
    if reason := _untrusted(error):
        return Problem("certificate", f"{_LINES['certificate']} ({reason})")
    if isinstance(error, InvalidResponse):
        return Problem("protocol", _LINES["protocol"])
    if isinstance(error, (MovedError, ClusterCrossSlotError)):
        return Problem("cluster", _LINES["cluster"])
    return next(
        (Problem(cause, _LINES[cause]) for cause, words in _SAID.items() if any(word in message for word in words)),
        None,
    )


def _unusable(info: Mapping[str, Any], *, cluster: bool) -> Iterator[Problem]:
    if cluster != (info.get("redis_mode") == "cluster" or bool(info.get("cluster_enabled"))):
        yield Problem("cluster", _NO_CLUSTER if cluster else _LINES["cluster"])
    if info.get("role") == "slave":
        yield Problem("replica", _LINES["replica"])
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        yield Problem("version", f"Redis {version} is too old: the service needs {'.'.join(map(str, OLDEST))} or newer")


def _unsafe(info: Mapping[str, Any], appendfsync: str | None) -> Iterator[Problem]:
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        yield Problem(
            "eviction", f"Redis drops notes when its memory is full (maxmemory-policy {policy}): set it to noeviction"
        )
    if info.get("aof_enabled") == 0:
        yield Problem("persistence", "Redis keeps no append-only file, so that a crash loses notes: set appendonly yes")
    elif appendfsync not in (None, "always"):
        yield Problem(
            "fsync", f"Redis acknowledges what is not on disk yet (appendfsync {appendfsync}): set it to always"
        )


def _lacking(info: Mapping[str, Any], replicas: int) -> Iterator[Problem]:
    there = info.get("connected_slaves", 0)
    if there < replicas:
        yield Problem(
            "replicas",
            f"Redis has {there} replicas and NOTELLM_REDIS_WAIT demands {replicas}, so that no write is acknowledged: "
            "bring replicas back, or set it lower",
        )


def _uncovered(settings: Mapping[str, str], cells: int) -> Iterator[Problem]:
    if cells > 1 and settings.get(FULL_COVERAGE) == "yes":
        yield Problem(
            "coverage",
            f"Redis refuses the writes of all cells while one has no primary ({FULL_COVERAGE} yes): set it to no on "
            "every node",
        )


def _denied(error: BaseException) -> str:
    """The denied command, as far as the error names it; empty when the error is another.

    Nothing else of the error: keys, and the pipeline that redis-py quotes, may be text of a note.
    """
    from redis.exceptions import NoPermissionError

    message = str(error)
    if not (isinstance(error, NoPermissionError) or any(words in message for words in _DENIED_IN_SCRIPT)):
        return ""
    command = _COMMAND.search(message)
    return f"the command {command[1].upper()}" if command else "a command or a key, which ACL LOG names"


def _untrusted(error: BaseException | None) -> str:
    """Why TLS failed; empty when it did not, or when the other side merely hung up."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if error is None or isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ""
    return getattr(error, "verify_message", "") or (error.reason or "no reason given").replace("_", " ").lower()
