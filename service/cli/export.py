"""The command `notellm export`: a checkpoint in the format of another tool, and every note's list in a file."""

from collections.abc import Callable
from pathlib import Path

import click

from service.cli.common import FILE, FOLDER, echo, load_settings, mistakes, store_mistakes

MOST = 100  # as in the API


def _sentence_transformers(checkpoint: Path, out: Path) -> str:
    from model.exports.sentence_transformers import write_sentence_transformers

    manifest = write_sentence_transformers(checkpoint, out)
    return (
        f"model {manifest.fingerprint} in {out}: SentenceTransformer opens it, and its README.md says what to feed it"
    )


def _vllm(checkpoint: Path, out: Path) -> str:
    from model.inference.vllm_checkpoint import write_serving

    serving = write_serving(checkpoint, out)
    return f"model {serving.manifest.fingerprint} in {out}, with the projection as tokens {serving.first} and up"


# Each takes the checkpoint and the folder to write, and says in a line what it did.
FORMATS: dict[str, Callable[[Path, Path], str]] = {
    "sentence-transformers": _sentence_transformers,
    "vllm": _vllm,
}


class _Export(click.Group):
    """What is no name of a command is a checkpoint."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = ["checkpoint", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Export)
def export() -> None:
    """Write a checkpoint for another tool, or every note's list of related notes.

    `notellm export ./checkpoint --format FORMAT` is short for `notellm export checkpoint ./checkpoint --format FORMAT`.

    \b
    Examples:
      notellm export checkpoint ./checkpoint --format sentence-transformers --out ./export
      notellm export related --k 50 --out lists.parquet
    """


@export.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--format", "layout", type=click.Choice(list(FORMATS)), required=True, help="For which tool.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write; not the checkpoint's own.")
def checkpoint(checkpoint: Path, layout: str, out: Path) -> None:
    """Write a checkpoint in the format of another tool.

    \b
      sentence-transformers   embeddings alone, with stock modules: a transformer, last-token
                              pooling, the projection, unit length
      vllm                    embedding and tags from one engine, with the projection as reserved
                              tokens of the output matrix; a worker on vLLM writes it for itself

    With sentence-transformers the vectors are those of the service (cosine 0.9999 at least, in float32), provided
    that notes are fed as the README.md in the new folder says; note_text.py beside it builds that text, cut and
    cleaned as in training.
    BERT-style checkpoints are refused: tools may take them for encoders and read them in both directions.

    \b
    Example:
      notellm export checkpoint ./checkpoint --format sentence-transformers --out ./export

    \b
    Then, in Python, with ./export on sys.path:
      from note_text import NoteText
      from sentence_transformers import SentenceTransformer
      text = NoteText("./export")
      SentenceTransformer("./export").encode([text("Night train to Lisbon", "Bring socks.", ["travel"])])
    """
    with mistakes():
        said = FORMATS[layout](checkpoint, out)
    echo(said)


@export.command()
@click.option("--k", type=click.IntRange(1, MOST), default=50, show_default=True, help="Notes in a list at most.")
@click.option("--out", type=FILE, required=True, help="The .parquet file to write.")
def related(k: int, out: Path) -> None:
    """Write every note's list of related notes: what `GET /notes/{id}/related?k=K` answers, in one file.

    Writes note_id, related_ids (closest first) and scores, a row a note; hidden notes have no row and are in no list.
    The file gets its name when it is whole. Whatever ends a run, the same command goes on where it was, with the lists
    of the earlier run as they are: remove the folder .NAME.parts beside the file to begin anew.

    The lists are made beside the service, from its Redis and its indexers: NOTELLM_REDIS_URL and
    NOTELLM_INDEX__ADDRESSES, without them those of `notellm serve` in NOTELLM_STATE_DIR. It is fastest with
    NOTELLM_HTTP__CACHED_NOTES as large as the community.

    \b
    Example:
      notellm export related --k 50 --out lists.parquet
    """
    with mistakes(), store_mistakes():
        from service.wiring.lists import write_lists

        made = write_lists(load_settings(), out, k)
    pending = f"; {made.pending} notes are not searchable yet" if made.pending else ""
    echo(f"lists of {made.notes} notes by model {made.model} in {out}{pending}")


@click.command()
@click.argument("checkpoint", type=FOLDER)
def golden(checkpoint: Path) -> None:
    """Write a checkpoint's golden answers into its manifest, as `notellm train` does.

    A worker reads 32 canary notes when it starts and is not ready unless it says of them what the checkpoint
    says, in any precision and on any backend. The answers are made in float32 on plain transformers.

    \b
    Example:
      notellm golden ./checkpoint
    """
    with mistakes():
        from model.inference.golden import record

        manifest = record(checkpoint)
    echo(f"golden answers of model {manifest.fingerprint} in {checkpoint}")
