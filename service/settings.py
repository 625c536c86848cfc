"""Operational settings: read once at start-up from ``NOTELLM_*``, frozen, and fatal when wrong.

Nested names take two underscores: ``NOTELLM_HTTP__PORT=8001``. `notellm settings` prints them all. What
belongs to the model (template, dimension, categories) is not here: it travels with the checkpoint.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from indexer.rpc.frames import check_address
from indexer.shards import replicas
from service.setting_groups import (
    AttributionSettings,
    GuardSettings,
    HttpSettings,
    IndexSettings,
    LimitSettings,
    OpsSettings,
    WorkerSettings,
    is_loopback,
)

MINI = Path(__file__).parent.parent / "model" / "mini"
# Settings of commands, and of no process.
_OF_COMMANDS = {"NOTELLM_DATA_DIR", "NOTELLM_KEY"}
_SHORTEST_SECRET = 16


class SetupError(Exception):
    """A mistake in the set-up; the message is one line that tells the operator what to mend."""


def reason_of(error: OSError) -> str:
    """Why the system refuses, and the file if there is one, without the numbers and quotes that Python adds."""
    has_number = error.errno and not isinstance(error, socket.gaierror)  # asyncio adds to the text that belongs to it
    reason = os.strerror(error.errno or 0) if has_number else error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "there is a file where a folder should be"
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


class Settings(BaseSettings):
    """All settings of all processes."""

    model_config = SettingsConfigDict(env_prefix="NOTELLM_", env_nested_delimiter="__", frozen=True, extra="forbid")

    redis_url: SecretStr | None = Field(
        default=None,
        description="redis:// or unix:// URL, or redis+cluster://HOST:PORT,HOST:PORT of a cluster; without it `serve` "
        "starts a private Redis.",
    )
    redis_url_file: Path | None = Field(
        default=None, description="File that holds the URL instead, such as a secret of a container."
    )
    redis_wait: NonNegativeInt | None = Field(
        default=None,
        description="Replicas of Redis that have to have a write before it is acknowledged; without it 1 on a cluster, "
        "else 0.",
    )
    cells: int = Field(
        default=1, ge=1, le=100, description="Parts of the store, each on one node; docs/cluster.md. It never changes."
    )
    rpc_secret: SecretStr | None = Field(
        default=None,
        description="What gateways, workers and indexers prove to each other over TCP, the same for all; without it "
        "whoever reaches their ports may call.",
    )
    rpc_secret_file: Path | None = Field(
        default=None, description="File that holds this secret instead, such as a secret of a container."
    )
    checkpoint: Path = Field(default=MINI, description="Folder of the model: notellm.json, weights, tokenizer.")
    candidate: Path | None = Field(
        default=None,
        description="Folder of another model that `serve` runs one worker of, such as turns/candidate of `notellm "
        "learn`; then no worker takes over by itself.",
    )
    state_dir: Path = Field(default=Path("notellm-state"), description="Where `serve` keeps Redis and snapshots.")
    keys_file: Path | None = Field(
        default=None, description="Keys, from `notellm keys create`; without it nobody is asked for one."
    )
    audit_file: Path | None = Field(
        default=None, description="Where the gateway's audit log goes; without it, to where the other logs go."
    )
    webhook_url: SecretStr | None = Field(
        default=None, description="http:// or https:// URL that hears which notes can be found and which failed."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What signs the requests to the webhook, so that it knows whom they are from."
    )
    webhook_secret_file: Path | None = Field(
        default=None, description="File that holds this secret instead, such as a secret of a container."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")
    max_queue: PositiveInt = Field(default=1_000_000, description="Notes waiting at most; more are refused with 503.")
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    ops: OpsSettings = OpsSettings()
    worker: WorkerSettings = WorkerSettings()
    index: IndexSettings = IndexSettings()
    attribution: AttributionSettings = AttributionSettings()
    guard: GuardSettings = GuardSettings()

    @model_validator(mode="before")
    @classmethod
    def _load_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values | {
            name: _content(f"NOTELLM_{name}".upper(), path, given=bool(values.get(name)))
            for name in ("redis_url", "rpc_secret", "webhook_secret")
            if (path := values.get(f"{name}_file"))
        }

    @model_validator(mode="after")
    def _refuse_short_secret(self) -> Self:
        for name, secret in (("RPC", self.rpc_secret), ("WEBHOOK", self.webhook_secret)):
            if secret is not None and len(secret.get_secret_value()) < _SHORTEST_SECRET:
                short = f"NOTELLM_{name}_SECRET has fewer than {_SHORTEST_SECRET} characters"
                raise ValueError(f"{short}; make one: openssl rand -hex 32")
        return self

    @model_validator(mode="after")
    def _refuse_unsigned_webhook(self) -> Self:
        if self.webhook_url is not None:
            if not re.match(r"https?://[^/\s]", self.webhook_url.get_secret_value()):
                raise ValueError("NOTELLM_WEBHOOK_URL is no http:// or https:// URL")
            if self.webhook_secret is None:
                raise ValueError("NOTELLM_WEBHOOK_URL needs NOTELLM_WEBHOOK_SECRET; make one: openssl rand -hex 32")
        return self

    @model_validator(mode="after")
    def _refuse_unknown_names(self) -> Self:
        known = set(environment_names())
        for name in os.environ:
            if name.startswith("NOTELLM_") and name not in known | _OF_COMMANDS:
                raise ValueError(f"unknown setting {name}; `notellm settings` lists the known ones")
        return self

    @model_validator(mode="after")
    def _refuse_open_listener(self) -> Self:
        if not (self.keys_file or self.http.allow_open or is_loopback(self.http.host)):
            raise ValueError(
                f"NOTELLM_HTTP__HOST={self.http.host} would let anybody read and write, for there are no keys; "
                "make one (`notellm keys create`) and set NOTELLM_KEYS_FILE, keep 127.0.0.1, or set "
                "NOTELLM_HTTP__ALLOW_OPEN=1 in a network that is closed otherwise"
            )
        return self


def _content(variable: str, path: Any, *, given: bool) -> str:
    """The text of the file that stands for a variable. Raises ValueError."""
    if given:
        raise ValueError(f"{variable} and {variable}_FILE are both set; one of them has to go")
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ValueError(f"{variable}_FILE cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable}_FILE={path} cannot be read: it is not UTF-8") from None


def check_addresses(settings: Settings) -> None:
    """Raises SetupError if processes could not find each other: an address of a worker or an indexer is none."""
    for name, addresses in (("WORKER", settings.worker.addresses), ("INDEX", settings.index.addresses)):
        if not addresses:
            raise SetupError(f"NOTELLM_{name}__ADDRESSES is empty; name at least one")
        try:
            for address in addresses:
                for replica in replicas(address):
                    check_address(replica)
        except ValueError as error:
            raise SetupError(f"NOTELLM_{name}__ADDRESSES: {error}") from None


def environment_names() -> dict[str, Any]:
    """Every environment variable that is read, with its field: ``NOTELLM_HTTP__PORT``."""
    names: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            for inner, inner_field in nested.model_fields.items():
                names[f"NOTELLM_{name}__{inner}".upper()] = inner_field
        else:
            names[f"NOTELLM_{name}".upper()] = field
    return names


def describe(settings: Settings) -> Iterator[str]:
    """Two lines a setting: name and value, then its description and default. Secrets are masked."""
    for name, field in environment_names().items():
        value: Any = settings
        for part in name.removeprefix("NOTELLM_").lower().split("__"):
            value = getattr(value, part)
        yield f"{name}={_shown(value)}"
        yield f"    {field.description} Default: {_shown(field.default) or 'none'}."


def _shown(value: Any) -> str:
    """The value as it would be written into the environment."""
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case tuple():
            return json.dumps(value)
        case _:
            return str(value)
