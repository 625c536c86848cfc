"""The command `notellm`. Only click is imported here, so that every help text answers at once."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.backup import backup, restore
from service.cli.common import FOLDER, echo, load_settings, mistakes, store_cells
from service.cli.data import convert, pairs, samples
from service.cli.embed import embed
from service.cli.evaluate import calibrate, cases, evaluate
from service.cli.export import export, golden
from service.cli.index import index
from service.cli.keys import key_option, keys
from service.cli.learn.commands import learn
from service.cli.reproduce import reproduce
from service.cli.rollout.experiments import experiment
from service.cli.rollout.models import model
from service.cli.streams import deadletters, events, report
from service.cli.train import adapt, merge, train

if TYPE_CHECKING:
    from service.backup.vectors import LoadedVectors
    from service.cli.load import Loaded
    from service.settings import Settings

USER_MISTAKE = 2
REJECTED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Related notes, hashtags and categories for a community of notes.

    \b
    Start here:
      notellm serve             everything on this machine, in one command
      notellm load samples      fill it with sample notes
      curl 'http://127.0.0.1:8000/notes/<id>/related?k=5'

    Every process is configured by environment variables; `notellm settings` prints them.
    """


@cli.command()
@click.option(
    "--samples", is_flag=True, help="Load the sample notes once everything is ready; with keys, NOTELLM_KEY is one."
)
@click.option(
    "--backend", type=click.Choice(["auto", "hf", "openvino", "vllm"]),
    help="What runs the model: vllm needs its package and pays on a GPU, openvino needs its package. Default: "
    "NOTELLM_WORKER__BACKEND, or auto, which is openvino where it is installed and a CPU computes in float32, else hf.",
)  # fmt: skip
def serve(samples: bool, backend: str | None) -> None:
    """Run the whole service on this machine.

    Starts a private Redis (unless NOTELLM_REDIS_URL names one), a worker, the shards of the index and the
    gateway, each in its own process, restarts what dies, and says when everything is ready. Ctrl-C stops all
    of it; what was acknowledged is on disk in NOTELLM_STATE_DIR and is there again after the next start.

    \b
    Examples:
      notellm serve --samples
      NOTELLM_HTTP__PORT=8080 NOTELLM_STATE_DIR=/var/lib/notellm notellm serve
      notellm serve --backend vllm
    """
    if backend:
        os.environ["NOTELLM_WORKER__BACKEND"] = backend
    current = load_settings()
    from service.processes.serve import serve as supervise
    from service.settings import SetupError

    try:
        sys.exit(supervise(current, samples=samples))
    except SetupError as error:
        raise click.ClickException(str(error)) from error


@cli.command()
def gateway() -> None:
    """Run a gateway: the HTTP API. Needs Redis, the indexers and a worker; holds no model and no index.

    \b
    Example:
      NOTELLM_REDIS_URL=redis://10.0.0.5:6379/0 notellm gateway
    """
    _run("gateway")


@cli.command()
def worker() -> None:
    """Run a worker: reads waiting notes with the model, and drafts that the gateway sends.

    \b
    Example: the second of two workers
      NOTELLM_WORKER__ADDRESSES='["10.0.0.6:9100","10.0.0.7:9100"]' NOTELLM_WORKER__NUMBER=1 notellm worker
    """
    _run("worker")


@cli.command()
def indexer() -> None:
    """Run one shard of the index: follows the stream of vectors and answers searches.

    \b
    Example: the first of two shards
      NOTELLM_INDEX__ADDRESSES='["10.0.0.8:9200","10.0.0.9:9200"]' NOTELLM_INDEX__NUMBER=0 notellm indexer
    """
    _run("indexer")


@cli.command()
def settings() -> None:
    """Print every environment variable: its value now, its default and what it is for.

    \b
    Example:
      NOTELLM_HTTP__PORT=8080 notellm settings
    """
    from service.settings import describe

    current = load_settings()
    for line in describe(current):
        echo(line)


@cli.command()
@click.argument("notes")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running service.")
@key_option
@click.option("--no-wait", is_flag=True, help="Return when all are written; do not wait until they can be found.")
@click.option(
    "--vectors", type=FOLDER,
    help="What `notellm embed` wrote for the same NOTES: straight into the store, and no worker reads them.",
)  # fmt: skip
def load(notes: str, url: str, key: str | None, no_wait: bool, vectors: Path | None) -> None:
    """Send NOTES to a running service and wait until all of them can be found.

    NOTES is a .jsonl or .parquet file, a folder that holds notes.jsonl or notes.parquet, or the word
    `samples` for the sample notes that come with the package. Each note needs a note_id and some text:

    \b
      {"note_id": "n1", "title": "Three days in Kyoto", "content": "...", "hashtags": ["travel"]}

    Also taken: category, exposure, author, created_at (RFC 3339, a timestamp, or seconds since 1970), language, hidden,
    and attributes: an object, in Parquet a struct, a map, or JSON as text.

    Loading the same notes again changes nothing. Prints how many notes were written and how fast. A service with
    keys wants one with the scopes write and, to wait, read.

    Exit status: 0 when all notes are stored; 1 when some were rejected, the first of which are shown, and the others
    stored; 2 when the command could not do its work.

    With --vectors, notes go into Redis with their vectors, and indexers follow: into the one of NOTELLM_REDIS_URL, or
    of `notellm serve` in NOTELLM_STATE_DIR, whether it runs or not. Such notes have no suggestions of their own.

    \b
    Examples:
      notellm load samples
      notellm load ./notes.jsonl --url http://10.0.0.4:8000
      notellm load ./notes.parquet --vectors ./vectors
    """
    if vectors is not None:
        with mistakes(), store_cells(make=True) as cells:
            from service.backup.vectors import load_vectors

            loaded: Loaded | LoadedVectors = load_vectors(cells, Path(notes), vectors)
    else:
        with mistakes():
            from service.cli.load import LoadError, load_source, send

            try:
                loaded = send(load_source(notes), url, key=key, wait=not no_wait)
            except LoadError as error:
                raise click.ClickException(str(error)) from error
    echo(str(loaded))
    if loaded.rejected:
        click.get_current_context().exit(REJECTED)


for command in (
    adapt,
    backup,
    calibrate,
    cases,
    convert,
    deadletters,
    embed,
    evaluate,
    events,
    experiment,
    export,
    golden,
    index,
    keys,
    learn,
    merge,
    model,
    pairs,
    report,
    reproduce,
    restore,
    samples,
    train,
):
    cli.add_command(command)


def main() -> None:
    """The entry point: mistakes of the person who types are one line on stderr and exit status 2."""
    # Processes log, see `_run`. A command prints what it has to say; Python would print the names of events beside it.
    logging.getLogger("service").addHandler(logging.NullHandler())
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message())
        sys.exit(USER_MISTAKE)
    except click.ClickException as error:
        echo(f"notellm: {error.format_message()}", err=True)
        sys.exit(USER_MISTAKE)
    sys.exit(status if isinstance(status, int) else 0)


def _run(name: str) -> None:
    current = load_settings()
    from service import logs
    from service.settings import SetupError

    logs.configure(current.log_level)
    run: Callable[[Settings], None] = importlib.import_module(f"service.wiring.{name}").run
    try:
        run(current)
    except SetupError as error:
        raise click.ClickException(str(error)) from error
    except Exception:
        # Python's own traceback would hold the message, and that may quote a note.
        logging.getLogger(__name__).exception("process_failed", extra={"role": name})
        sys.exit(1)


if __name__ == "__main__":
    main()
