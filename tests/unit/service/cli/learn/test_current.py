"""The link to the model that answers."""

from pathlib import Path

import pytest
from support.checkpoint import tiny_checkpoint

from service.cli.learn import current
from service.cli.learn.commands import _serving
from service.cli.learn.turn import Turn


def test_it_leads_to_what_answers_after_a_ship_and_after_a_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    serving, turns = tmp_path / "serving", tmp_path / "turns"
    old = tiny_checkpoint(serving).fingerprint
    turns.mkdir()
    monkeypatch.setenv("NOTELLM_CHECKPOINT", str(serving))
    active: list[str | None] = [None]
    for module in ("current", "trial"):
        monkeypatch.setattr(f"service.cli.learn.{module}.active_model", lambda: active[0])

    assert current.follow(turns) is None  # no service
    assert list(turns.iterdir()) == []
    active[0] = old
    assert current.follow(turns) == old
    assert (turns / "current").resolve() == serving
    assert current.follow(turns) is None  # it leads there already
    monkeypatch.setenv("NOTELLM_CHECKPOINT", str(turns / "current"))
    asked = _serving(turns)
    assert asked == {"serving": str(serving), "fingerprint": old}  # what the link leads to, which may change

    turn = Turn.begin(turns, asked, None)
    active[0] = new = tiny_checkpoint(turn.checkpoint, seed=7).fingerprint
    assert current.follow(turns) == new
    assert (turns / "current").readlink() == Path("turn-0001/checkpoint")
    assert _serving(turns) == {"serving": str(turn.checkpoint), "fingerprint": new}

    active[0] = old  # taken back
    assert current.follow(turns) == old
    assert (turns / "current").resolve() == serving

    active[0] = "f" * 16  # somebody's own
    assert current.follow(turns) is None
    assert (turns / "current").resolve() == serving
