"""A turn in short: what `notellm learn status` prints, and what gateways show (`GET /learning`)."""

import time
from typing import Any, Literal

from service.cli.learn.turn import Turn
from service.contract.fields import time_of
from service.contract.learning import GateRowOut, State, StepOut, TurnOut, UnseenOut

STEPS = {
    "data": "notes and related pairs; the newest are held out",
    "train": "a new model, from the serving one",
    "calibrate": "scores that mean what they say",
    "gate": "the new model against the serving one, on the newest notes",
    "index": "the new model's index lacks nothing",
    "experiment": "both models on readers",
    "decision": "shipped, or taken back",
}
_OUTCOMES: dict[str, Literal["refused", "shipped", "taken_back"]] = {
    "refused": "refused",
    "shipped": "shipped",
    "taken back": "taken_back",
}


def summary(turn: Turn, *, runs: str = "", failed: str = "") -> TurnOut:
    """The turn as of now; ``runs`` is the step that has just begun, ``failed`` what went wrong in the next one."""
    now, seen = time_of(time.time()), turn.found("data").get("unseen", {})
    return TurnOut(
        name=turn.folder.name,
        begun=time_of(turn.begun_at),
        told=now,
        serving=turn.asked["fingerprint"],
        model=turn.found("train").get("fingerprint"),
        outcome=_OUTCOMES[turn.outcome] if turn.outcome else None,
        why=turn.why,
        steps=[_step(turn, name, runs, failed, now) for name in STEPS],
        gate=[_row(row) for row in turn.found("gate").get("rows", ())],
        experiment=turn.found("experiment").get("name"),
        hashtags=UnseenOut(**seen["hashtags"]) if seen else None,
        categories=UnseenOut(**seen["categories"]) if seen else None,
    )


def _step(turn: Turn, name: str, runs: str, failed: str, now: str) -> StepOut:
    def step(state: State, at: str | None = None, took_s: float | None = None, says: str = "") -> StepOut:
        return StepOut(name=name, about=STEPS[name], state=state, at=at, took_s=took_s, says=says)

    if done := turn.steps.get(name):
        return step("done", time_of(done["at"]), done["took_s"], _said(turn, name))
    if turn.outcome or name != next(one for one in STEPS if one not in turn.steps):
        return step("open")
    if name == runs:
        return step("runs", now)
    if failed:
        return step("failed", now, says=failed)
    return step("waits", says=turn.waits_for) if turn.waits_for else step("next")


def _said(turn: Turn, step: str) -> str:
    """What a step found, on one line."""
    found = turn.found(step)
    match step:
        case "data":
            # Turns of an older release tell numbers alone.
            learns = found.get("learns") or f"{found['pairs']:,} pairs"
            judged_by = found.get("judged_by") or f"{found['newest_pairs']:,} pairs"
            return (
                f"{learns} of {found['notes']:,} notes; {judged_by} of {found['newest_notes']:,} newest notes held out"
            )
        case "train":
            new = f"; new categories: {', '.join(found['new_categories'])}" if found["new_categories"] else ""
            return f"{found['fingerprint']}, {found['steps']:,} steps{new}"
        case "calibrate":
            stay = "; the serving model's maps stay" if found.get("kept") else ""
            if not found["calibrated"]:
                return f"left out: {found['because'].partition(': ')[0]}{stay}"
            errors = ", ".join(f"{name} {one['after']:.3f}" for name, one in found["errors"].items())
            left_out = "".join(f"; left out: {name}, of too few notes{stay}" for name in found.get("left_out", ()))
            return f"calibration error: {errors}{left_out}"
        case "gate":
            return f"refused: {turn.why}" if turn.outcome == "refused" else "passed"
        case "index":
            return (
                f"lacks {found['dead_lettered']:,} notes, which no worker can read"
                if found["dead_lettered"]
                else "whole"
            )
        case "experiment":
            return str(found["name"])
        case "decision":
            return str(found["verdict"])
    raise AssertionError(step)


def _row(row: dict[str, Any]) -> GateRowOut:
    change = row["change"] or {"mean": None, "low": None, "high": None}
    return GateRowOut(
        name=row["name"],
        serving=row["serving"],
        new=row["new"],
        change=change["mean"],
        low=change["low"],
        high=change["high"],
        of=row.get("of", ""),
        says=row["says"],
    )
