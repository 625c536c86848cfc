"""Shared by commands: options, settings, the store, and errors as one line."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from pydantic import ValidationError
    from redis import Redis as SyncRedis

    from model.backend import Backend
    from service.settings import Settings
    from service.store.cells.ring import Cells

Command = Callable[..., None]
PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SPLIT = "Keep it the same in `pairs` and `evaluate`, or a model is judged on notes that it was trained on."


# Controls, separators of lines, marks that turn the direction of a line, and halves of characters, which do not print.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them, as ``2,3,4``."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(int(part) for part in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers with commas between them, as 2,3,4", param, ctx)


class _Time(click.ParamType[float]):
    """A time in the unit of a log, or an ISO 8601 time, which is in seconds since 1970."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return value
        with suppress(ValueError):
            return int(value)
        with suppress(ValueError):
            if math.isfinite(number := float(value)):
                return number
        from model.data.times import seconds

        try:
            return seconds(value)
        except ValueError:
            self.fail(f"{value!r} is no number and no time such as 2026-01-31T12:00:00Z", param, ctx)


NUMBERS = _Numbers()
TIME = _Time()


def holdout_options(command: Command) -> Command:
    """The two options of the split by note."""
    share = click.option(
        "--holdout", default=0.3, show_default=True, help=f"Share of the notes kept for evaluation. {SPLIT}"
    )
    seed = click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
    return share(seed(command))


def runtime_options(command: Command) -> Command:
    """What runs a model, and how; for `open_model`."""
    options = [
        click.option(
            "--backend", type=click.Choice(["auto", "hf", "openvino", "vllm"]), default="auto", show_default=True,
            help="What runs the model; auto is openvino where it is installed and a CPU computes in float32, else hf.",
        ),
        click.option(
            "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True,
            help="Precision of the weights; auto is bfloat16 on a GPU, and on a CPU that computes in it if the model "
            "was saved so, else float32.",
        ),
        click.option(
            "--tensor-parallel", type=click.IntRange(min=1), default=1, show_default=True,
            help="GPUs that share one copy of the weights; vllm only.",
        ),
        click.option(
            "--serving-dir", type=FOLDER, default=Path("serving"), show_default=True,
            help="Where vllm's form of a checkpoint is written and found again; vllm only.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def open_model(checkpoint: Path, runtime: Mapping[str, Any]) -> "Backend":
    """Open a checkpoint as `runtime_options` say. Raises as `open_backend` does."""
    from model.inference.open import Runtime, open_backend

    settings = Runtime(runtime["dtype"], serving_dir=runtime["serving_dir"], tensor_parallel=runtime["tensor_parallel"])
    return open_backend(runtime["backend"], checkpoint, settings)


def was_given(name: str) -> bool:
    """Whether the option was typed, rather than left at its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def printable(text: str) -> str:
    """A text of which a terminal obeys nothing: control characters, but for line ends and tabs, are escapes."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str, most: int = 1000) -> str:
    """The same for a text of any length within a line."""
    shown = printable(" ".join(text.splitlines()))
    return shown if len(shown) <= most else f"{shown[:most]}..."


def echo(text: str, *, err: bool = False) -> None:
    """Print what a command has to say."""
    click.echo(printable(text), err=err)


@contextmanager
def mistakes() -> Iterator[None]:
    """Errors that a person can mend become one line: wrong files, a wrong checkpoint, a missing package."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        extra = {
            "vllm": "vllm",
            "openvino": "openvino",
            "gguf": "smollm2",
            "pyspark": "spark",
            "py4j": "spark",
            "ray": "ray",
        }.get(package, "train")
        raise click.ClickException(
            f"{package} is not installed; this command needs: pip install 'notellm[{extra}]'"
        ) from error
    except (ValueError, OSError) as error:
        raise click.ClickException(_explained(error)) from error


def _explained(error: Exception) -> str:
    from model.files import FolderInUse
    from service.settings import reason_of

    if isinstance(error, OSError) and not isinstance(error, FolderInUse):
        return on_one_line(reason_of(error))
    return on_one_line(str(error))


def load_settings() -> "Settings":
    """The settings of the environment. Raises ClickException, naming every variable that is wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings, SetupError, check_addresses

    try:
        settings = Settings()
        check_addresses(settings)
    except SetupError as error:
        raise click.ClickException(str(error)) from None
    except ValidationError as error:
        raise click.ClickException(_explain(error)) from None
    except SettingsError as error:
        raise click.ClickException(
            f"{error}: a list is written as JSON, as in NOTELLM_WORKER__ADDRESSES='[\"127.0.0.1:9100\"]'"
        ) from None
    return settings


def _explain(error: "ValidationError") -> str:
    """Every problem with its variable, in one line, without the values: one may be a password."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        place, rule = detail["loc"], detail["msg"].removeprefix("Value error, ")
        name = "NOTELLM_" + "__".join(str(part) for part in place).upper()
        if detail["type"] == "extra_forbidden":
            rule = f"unknown setting {name}; `notellm settings` lists the known ones"
        problems.append(f"{name}: {rule}" if place and "NOTELLM_" not in rule else rule)
    return "; ".join(problems)


@contextmanager
def store_cells(*, make: bool = False) -> "Iterator[Cells[SyncRedis]]":
    """A client of each cell; see `service.processes.local_redis.reached`. Mistakes become ClickException."""
    settings = load_settings()
    from service.processes.local_redis import reached
    from service.store.cells.format import check_format_sync
    from service.store.cells.size import check_size_sync
    from service.wiring.stores import open_sync_cells

    with (
        store_mistakes(),
        reached(settings, make=make) as url,
        open_sync_cells(url, settings.cells) as cells,
    ):
        check_format_sync(cells.first)
        check_size_sync(cells.first, len(cells))
        yield cells


@contextmanager
def store() -> "Iterator[SyncRedis]":
    """A client of the first cell."""
    with store_cells() as cells:
        yield cells.first


@contextmanager
def store_mistakes() -> Iterator[None]:
    """Errors of settings, disk and Redis become one line."""
    from service.errors import StoreUnavailable
    from service.settings import SetupError

    try:
        yield
    except (SetupError, OSError) as error:
        raise click.ClickException(_explained(error)) from error
    except StoreUnavailable as error:
        raise click.ClickException(f"{error}; NOTELLM_REDIS_URL says where it is") from error
