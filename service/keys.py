"""API keys with their scopes. A file holds their hashes; a `Keyring` follows the file for a gateway.

A key is 256 random bits, so one SHA-256 without salt is enough: nobody can try them all. The file is changed by hand
or by `notellm keys`::

    {"keys": [{"id": "5f0c2a9e", "name": "ingest", "scopes": ["read", "write"],
               "sha256": "<64 hexadecimal digits>", "created_at": "2026-01-31T12:00:00Z"}]}
"""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from service import metrics
from service.setting_groups import ANY_ORIGIN
from service.settings import Settings, SetupError

log = logging.getLogger(__name__)

Scope = Literal["read", "write", "tags", "admin"]

PREFIX = "notellm_"  # so that scanners for leaked secrets, and people, recognize a key
_NAME = re.compile(r"^[^\x00-\x1f\x7f]{0,64}$")


class KeysError(SetupError):
    """A keys file that cannot be used; the message is one line with a remedy, and quotes nothing of the file."""


class Key(BaseModel, frozen=True, extra="forbid", strict=True):
    """One key, without the key itself."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    name: Annotated[str, StringConstraints(pattern=_NAME.pattern)] = ""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created_at: str

    def allows(self, scope: Scope) -> bool:
        """Whether it has the scope; ``admin`` implies the others."""
        return scope in self.scopes or "admin" in self.scopes


class _File(BaseModel, frozen=True, extra="forbid", strict=True):
    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        return self


class Keyring:
    """The live keys of a file, by their hashes. `refresh` follows the file; any thread may call it.

    Raises KeysError when there is no such file, when it is broken, or when it holds no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _signature(path)
        keys = load_keys(path)
        if not keys:
            raise KeysError(f"{path} holds no key; {_how_to_create(path)}")
        self._use(keys)

    @property
    def may_write(self) -> bool:
        """Whether a live key may write."""
        return any(key.allows("write") for key in self._by_hash.values())

    def find(self, secret: bytes) -> Key | None:
        """The live key with this secret, if there is one."""
        return self._by_hash.get(hashlib.sha256(secret).digest())

    def refresh(self) -> None:
        """Load the file again if it changed. When it is broken or gone, the keys stay; log and metric show it.

        A file without keys is not broken: all were revoked, and nobody gets in.
        """
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            keys = load_keys(self._path)
        except KeysError as error:
            metrics.KEYS_RELOADS.labels("failed").inc()
            log.error("keys_file_broken", extra={"reason": str(error), "keys_kept": len(self._by_hash)})  # noqa: TRY400
            return
        self._use(keys)
        metrics.KEYS_RELOADS.labels("ok").inc()
        log.info("keys_read", extra={"keys": len(keys)})

    def _use(self, keys: Sequence[Key]) -> None:
        self._by_hash = {bytes.fromhex(key.sha256): key for key in keys}
        metrics.KEYS.set(len(keys))


def open_keyring(settings: Settings) -> Keyring | None:
    """The keys of a service; None without a file.

    Raises KeysError, and SetupError where a page of any origin could write, since `*` lets all of them call.
    """
    keyring = Keyring(settings.keys_file) if settings.keys_file else None
    if ANY_ORIGIN in settings.http.cors_origins and (keyring is None or keyring.may_write):
        who = "there are keys that may write" if keyring else "there are no keys, so every page could write"
        raise SetupError(f'NOTELLM_HTTP__CORS_ORIGINS names "*", and {who}: name the origins of your pages instead')
    return keyring


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, oldest first. Raises KeysError."""
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        raise KeysError(f"there is no keys file {path}; {_how_to_create(path)}") from None
    except OSError as error:
        raise KeysError(f"cannot read the keys file {path}: {error.strerror}") from error
    except ValidationError as error:
        raise KeysError(f"{path} is no keys file: {_first_rule(error)}") from None


def create_key(path: Path, scopes: Sequence[Scope], name: str = "") -> tuple[Key, str]:
    """Add a key to the file, made if need be; returns the key and its secret, which is stored nowhere.

    Raises KeysError when the file is broken or cannot be written, ValueError for a name that does not fit a line.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a key's name has at most 64 characters, none of them a control character")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(4),
        name=name,
        scopes=tuple(dict.fromkeys(scopes)),
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    with _locked(path):
        _write(path, (*(load_keys(path) if path.exists() else ()), key))
    return key, secret


def revoke_key(path: Path, key_id: str) -> Key:
    """Remove a key from the file. Raises KeysError when there is none of this id."""
    with _locked(path):
        keys = {key.id: key for key in load_keys(path)}
        if key_id not in keys:
            raise KeysError(f"{path} holds no key of this id; `notellm keys list` shows them")
        revoked = keys.pop(key_id)
        _write(path, tuple(keys.values()))
    return revoked


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No other `notellm keys` changes a file of this folder during the block, so that no key is lost."""
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise KeysError(f"cannot open the folder of {path}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Replace the file in one step; only its owner can read it."""
    folder = path.absolute().parent
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".keys-")  # mkstemp's files are 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(_File(keys=keys).model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path.resolve())
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeysError(f"cannot write {path}: {error.strerror}") from error


def _signature(path: Path) -> tuple[int, ...] | None:
    """Differs when a file was changed, replaced, or became readable; None when there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


def _first_rule(error: ValidationError) -> str:
    """Place and rule, without the value: it may be a key in the place of its hash."""
    [first, *_] = error.errors(include_url=False, include_input=False)
    place, rule = first["loc"], first["msg"]
    if first["type"] == "extra_forbidden":
        place, rule = place[:-1], "unknown field"
    return f"{'.'.join(map(str, place)) or 'the file'}: {rule}"


def _how_to_create(path: Path) -> str:
    return f"`notellm keys create --scope read --file {path}` makes one"
