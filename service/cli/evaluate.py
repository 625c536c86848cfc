"""The commands that judge a checkpoint, and that make its scores mean what they say."""

from pathlib import Path

import click

from service.cli.common import FOLDER, SPLIT, holdout_options, mistakes


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
def calibrate(checkpoint: Path, data: Path, out: Path | None, limit: int, holdout: float, split_seed: int) -> None:
    """Make the scores of suggestions mean what they say: of those with 0.8, four in five are right.

    Predicts held-out notes of DATA as if they were drafts in a community of the others, fits how likely a hashtag
    and a category are to be right, given model and neighbors, and writes that into the checkpoint's manifest. Its
    fingerprint stays, so no note is embedded again; restart the gateways. Writes reliability.md and
    reliability.svg: how scores and truth agree, on notes that were not fitted on.

    Needs 50 held-out notes with hashtags at least, and embeds all that are not held out.

    \b
    Example:
      notellm calibrate ./checkpoint --data ./data
    """
    with mistakes():
        from model.data.notes import load_notes
        from model.evaluation.reliability import MARKDOWN
        from model.evaluation.reliability import calibrate as run
        from model.inference.hf import HfBackend
        from model.inference.many import embed_all, predict_all

        notes = load_notes(data)
        backend = HfBackend.open(checkpoint)
        folder = out or checkpoint
        manifest, panels = run(
            checkpoint,
            folder,
            notes,
            lambda drafts: predict_all(backend, drafts),
            lambda community: embed_all(backend, community),
            holdout=holdout,
            seed=split_seed,
            limit=limit,
        )
    errors = "; ".join(f"{one.name} {one.error_before:.3f}, now {one.error_after:.3f}" for one in panels)
    click.echo(f"calibrated model {manifest.fingerprint}: expected calibration error of {errors}; {folder / MARKDOWN}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--checkpoint", type=FOLDER, help="A checkpoint; without it the baselines alone are compared.")
@click.option("--min-users", default=2, show_default=True, help="Users behind a gold pair at least.")
@click.option("--no-generation", is_flag=True, help="Leave out categories and hashtags, which take longest.")
@click.option("--limit", type=click.IntRange(min=1), help="Notes to predict at most for categories and hashtags.")
@holdout_options
def evaluate(
    data: Path,
    checkpoint: Path | None,
    min_users: int,
    no_generation: bool,
    limit: int | None,
    holdout: float,
    split_seed: int,
) -> None:
    """Compare a checkpoint with popularity, TF-IDF, BM25 and MiniLM on the held-out notes of DATA.

    Prints Markdown, for pairs of --min-users users and for all pairs: Recall@10, 100 and 1,000 with 95%
    intervals, recall by exposure, and the checkpoint's lead over each baseline by a paired bootstrap. Then
    what taking popularity out of its scores costs; accuracy and Ill. of its categories, held to the closed
    set and not; BLEU, ROUGE and F1 of its hashtags beside those of neighbors and the most frequent ones.

    Notes without events can be judged by their hashtags alone.

    \b
    Example:
      notellm evaluate ./data --checkpoint ./checkpoint
    """
    with mistakes():
        from model.data.events import has_events
        from model.evaluation.evaluate import evaluate as run
        from model.evaluation.hashtags import evaluate_tags, format_hashtags
        from model.evaluation.reliability import format_calibration
        from model.evaluation.report import format_report
        from model.inference.calibration import scores_of
        from model.inference.hf import HfBackend
        from model.inference.many import embed_all, predict_all
        from model.network.checkpoint import load_manifest

        backend = HfBackend.open(checkpoint) if checkpoint else None
        manifest = load_manifest(checkpoint) if checkpoint else None
        scores = scores_of(manifest) if manifest else None
        calibration = format_calibration(checkpoint, manifest) if checkpoint and manifest else ""
        if backend is not None and not has_events(data):
            tags = evaluate_tags(
                data,
                lambda notes: predict_all(backend, notes),
                lambda notes: embed_all(backend, notes),
                holdout=holdout,
                seed=split_seed,
                limit=limit,
                scores=scores,
            )
            table = format_hashtags(tags) if tags else f"{data}: no held-out note has both text and hashtags"
            click.echo("\n\n".join(filter(None, [table, calibration])))
            return
        report = run(
            data,
            None if backend is None else lambda notes: embed_all(backend, notes),
            None if backend is None or no_generation else lambda notes: predict_all(backend, notes),
            None
            if backend is None or no_generation
            else lambda notes: backend.write_categories(backend.tokenize(notes)),
            categories=manifest.categories if manifest else None,
            holdout=holdout,
            seed=split_seed,
            min_users=min_users,
            limit=limit,
            scores=scores,
        )
    click.echo("\n\n".join(filter(None, [format_report(report), calibration])))
