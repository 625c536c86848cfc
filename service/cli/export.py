"""The command `notellm export`: a checkpoint in the format of another tool."""

from collections.abc import Callable
from pathlib import Path

import click

from service.cli.common import FOLDER, echo, mistakes


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


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--format", "layout", type=click.Choice(list(FORMATS)), required=True, help="For which tool.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write; not the checkpoint's own.")
def export(checkpoint: Path, layout: str, out: Path) -> None:
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
      notellm export ./checkpoint --format sentence-transformers --out ./export

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
