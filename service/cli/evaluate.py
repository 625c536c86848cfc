"""The commands that judge a checkpoint, and that make its scores mean what they say."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.common import (
    FILE,
    FOLDER,
    NUMBERS,
    PATH,
    SPLIT,
    echo,
    holdout_options,
    mistakes,
    open_model,
    runtime_options,
    was_given,
)

if TYPE_CHECKING:
    from model.evaluation.baselines import Embeddings, Ranker
    from model.network.checkpoint import Manifest
    from model.note import Note


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="Folder with the notes that it was trained on, and others.")
@click.option("--out", type=FOLDER, help="Folder of the report. Default: the checkpoint's.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Predict this many notes at most."
)
@click.option(
    "--holdout", default=0.3, show_default=True, help=f"Share of the notes that training did not see. {SPLIT}"
)
@click.option("--split-seed", default=0, show_default=True, help="Which notes those are.")
@runtime_options
def calibrate(
    checkpoint: Path, data: Path, out: Path | None, limit: int, holdout: float, split_seed: int, **runtime: Any
) -> None:
    """Make the scores of suggestions mean what they say: of those with 0.8, four in five are right.

    Predicts held-out notes of DATA as if they were drafts in a community of the others, fits how likely a hashtag
    and a category are to be right, given model and neighbors, and writes that into the checkpoint's manifest. Its
    fingerprint stays, so no note is embedded again; restart the gateways. Writes reliability.md and
    reliability.svg: how scores and truth agree, on notes that were not fitted on.

    Needs 50 held-out notes with hashtags at least, or 50 with a category, and embeds all that are not held out.

    \b
    Example:
      notellm calibrate ./checkpoint --data ./data
    """
    with mistakes():
        from model.data.notes import load_notes
        from model.evaluation.reliability import MARKDOWN
        from model.evaluation.reliability import calibrate as run
        from model.inference.many import embed_all, predict_all

        notes = load_notes(data)
        backend = open_model(checkpoint, runtime)
        folder = out or checkpoint
        manifest, panels = run(
            checkpoint,
            folder,
            notes,
            partial(predict_all, backend),
            partial(embed_all, backend),
            holdout=holdout,
            seed=split_seed,
            limit=limit,
        )
    errors = "; ".join(f"{one.name} {one.error_before:.3f}, now {one.error_after:.3f}" for one in panels)
    echo(f"calibrated model {manifest.fingerprint}: expected calibration error of {errors}; {folder / MARKDOWN}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--checkpoint", type=FOLDER, help="A checkpoint; without it the baselines alone are compared.")
@click.option(
    "--sentence-bert", "encoders", multiple=True, metavar="ENCODER",
    help="Another baseline: a folder or a name that transformers can open, or a SentenceBERT that was trained here; "
    "repeatable. Default: minilm, if it is installed.",
)  # fmt: skip
@click.option(
    "--recall-at", "ks", type=NUMBERS, default="10,100,1000", show_default=True,
    help="The k of Recall@k. The paper's, for a pool of 258,000 notes: 100,1000,10000,100000.",
)  # fmt: skip
@click.option(
    "--min-users", type=click.IntRange(min=0), default=2, show_default=True, help="Users behind a gold pair at least."
)
@click.option(
    "--gold", type=PATH, help="Pairs to find, as `notellm pairs` writes them, instead of those of the events."
)
@click.option("--pool", type=PATH, help="Notes to rank instead of the held-out ones; training saw the others of DATA.")
@click.option("--no-generation", is_flag=True, help="Leave out categories and hashtags, which take longest.")
@click.option("--limit", type=click.IntRange(min=1), help="Notes to predict at most for categories and hashtags.")
@click.option("--json", "json_file", type=FILE, help="Also write every figure to this file.")
@runtime_options
@holdout_options
def evaluate(
    data: Path,
    checkpoint: Path | None,
    encoders: tuple[str, ...],
    ks: tuple[int, ...],
    min_users: int,
    gold: Path | None,
    pool: Path | None,
    no_generation: bool,
    limit: int | None,
    json_file: Path | None,
    holdout: float,
    split_seed: int,
    **runtime: Any,
) -> None:
    """Compare a checkpoint with popularity, TF-IDF, BM25 and sentence encoders on the held-out notes of DATA.

    Prints Markdown, for pairs of --min-users users and for all pairs: Recall@k and its average with 95%
    intervals, recall by exposure and by clicks, and the checkpoint's lead over each baseline by a paired bootstrap.
    Then what taking popularity out of its scores costs; accuracy and Ill. of its categories, held to the closed
    set and not; BLEU, ROUGE and F1 of its hashtags beside those of neighbors and the most frequent ones.

    Notes without events are judged by their categories and hashtags alone, unless --gold says what is related. Models
    run on the GPU if there is one.

    \b
    Examples:
      notellm evaluate ./data --checkpoint ./checkpoint
      notellm evaluate ./data --checkpoint ./checkpoint --pool ./test --gold ./test --recall-at 100,1000,10000,100000
    """
    _refuse_two_pools(pool)
    with mistakes():
        from model.evaluation.baselines import open_sentence_bert, sentence_bert_name
        from model.evaluation.evaluate import evaluate as run
        from model.evaluation.held_out import load_held_out
        from model.evaluation.reliability import format_calibration
        from model.evaluation.report import format_report
        from model.evaluation.retrieval import fitting
        from model.files import write_json
        from model.inference.calibration import scores_of
        from model.inference.many import embed_all, predict_all, write_all

        manifest = _manifest_of(checkpoint, "--sentence-bert") if checkpoint else None
        held_out = load_held_out(data, holdout=holdout, seed=split_seed, min_users=min_users, pool=pool, gold=gold)
        if held_out.gold is not None:
            fitting(ks, len(held_out.pool))  # a mistake is told before a model opens
        names = () if held_out.gold is None else encoders or _installed_encoders()
        others = {sentence_bert_name(name): open_sentence_bert(name, runtime["dtype"]) for name in names}
        embed, predict, write = None, None, None
        if checkpoint is not None:
            backend = open_model(checkpoint, runtime)
            embed = partial(embed_all, backend)
            if not no_generation:
                predict, write = partial(predict_all, backend), partial(write_all, backend)
        report = run(
            held_out,
            embed,
            predict,
            write,
            encoders=others,
            categories=manifest.categories if manifest else None,
            ks=ks,
            limit=limit,
            scores=scores_of(manifest) if manifest else None,
        )
        if json_file is not None:
            write_json(json_file, report.as_json())
        calibration = format_calibration(checkpoint, manifest) if checkpoint and manifest else ""
    echo("\n\n".join(filter(None, [format_report(report), calibration])))


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="Folder with the notes that it was trained on, and others.")
@click.option(
    "--against", multiple=True, metavar="MODEL",
    help="Another checkpoint, or an encoder as in `notellm evaluate`; repeatable. Default: minilm, if it is installed. "
    "TF-IDF and BM25 always take part.",
)  # fmt: skip
@click.option("--out", type=FILE, default=Path("cases.html"), show_default=True, help="The page to write.")
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Notes to draw.")
@click.option("--note", "ids", multiple=True, metavar="ID", help="A note to show instead; repeatable.")
@click.option(
    "--gold", type=PATH, help="Related pairs, as `notellm pairs` writes them, instead of those of the events."
)
@click.option("--pool", type=PATH, help="Notes to rank instead of the held-out ones.")
@click.option("--no-generation", is_flag=True, help="Leave out hashtags.")
@runtime_options
@holdout_options
def cases(
    checkpoint: Path,
    data: Path,
    against: tuple[str, ...],
    out: Path,
    count: int,
    ids: tuple[str, ...],
    gold: Path | None,
    pool: Path | None,
    no_generation: bool,
    holdout: float,
    split_seed: int,
    **runtime: Any,
) -> None:
    """Show the first related note of each method, beside each other, for some held-out notes of DATA (figure 3).

    Writes one HTML page that needs nothing else, and prints the same, shorter. The notes are drawn by their ids
    alone, so that every model is shown with the same ones. Where events or --gold say what is related, only notes with
    related ones are drawn, and hits are marked. Hashtags are predicted from title and content.

    \b
    Examples:
      notellm cases ./checkpoint --data ./data
      notellm cases ./checkpoint --data ./data --against ./other --against minilm --note n17 --note n42
    """
    _refuse_two_pools(pool)
    with mistakes():
        from model.evaluation.baselines import BM25, Embeddings, TfIdf
        from model.evaluation.cases import cases_page, choose_notes, find_cases, format_cases, hashtags_of
        from model.evaluation.held_out import load_held_out
        from model.evaluation.retrieval import NOTELLM
        from model.files import write_bytes
        from model.inference.many import embed_all, predict_all

        _manifest_of(checkpoint, "--against")
        held_out = load_held_out(data, holdout=holdout, seed=split_seed, min_users=0, pool=pool, gold=gold)
        chosen = choose_notes(held_out.pool, held_out.gold, count, ids)
        backend = open_model(checkpoint, runtime)
        rankers: list[Ranker] = [
            Embeddings(NOTELLM, embed_all(backend, held_out.pool)),
            *(_opponent(name, held_out.pool, runtime) for name in against or _installed_encoders()),
            TfIdf(held_out.pool),
            BM25(held_out.pool),
        ]
        hashtags = None
        if not no_generation:
            hashtags = hashtags_of(chosen, held_out.training, partial(predict_all, backend))
        found = find_cases(rankers, held_out.pool, held_out.gold, chosen, hashtags)
        about = f"Model {backend.fingerprint}; {len(held_out.pool):,} notes: {held_out.origin}."
        write_bytes(out, cases_page(found, "Related notes by method", about).encode())
    echo(f"{format_cases(found)}\n\n{len(found)} cases in {out}; * is a related note")


def _refuse_two_pools(pool: Path | None) -> None:
    if pool is not None and (was_given("holdout") or was_given("split_seed")):
        raise click.UsageError("--holdout and --split-seed choose the notes to rank; leave them out with --pool")


def _manifest_of(checkpoint: Path, option: str) -> "Manifest":
    """The manifest of a checkpoint that generates; an encoder's belongs to another option."""
    from model.network.checkpoint import load_manifest

    manifest = load_manifest(checkpoint)
    if manifest.recipe.architecture == "encoder":
        raise click.UsageError(f"{checkpoint} is a SentenceBERT, which generates nothing: name it with {option}")
    return manifest


def _installed_encoders() -> tuple[str, ...]:
    from model.network.minilm import has_minilm

    return ("minilm",) if has_minilm() else ()


def _opponent(name: str, pool: Sequence["Note"], runtime: Mapping[str, Any]) -> "Embeddings":
    """A ranker by another checkpoint or by an encoder."""
    from model.evaluation.baselines import Embeddings, open_sentence_bert, sentence_bert_name
    from model.evaluation.retrieval import NOTELLM
    from model.inference.many import embed_all
    from model.network.checkpoint import MANIFEST, load_manifest

    if (Path(name) / MANIFEST).is_file() and load_manifest(Path(name)).recipe.architecture == "decoder":
        return Embeddings(f"{NOTELLM} ({name})", embed_all(open_model(Path(name), runtime), pool))
    return Embeddings(sentence_bert_name(name), open_sentence_bert(name, runtime["dtype"])(pool))
