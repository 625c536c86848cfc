"""What a gateway counts of its answers, and how long it lets them wait."""

import pytest

from service.store.attribution import figures
from service.store.attribution.figures import AnswerCounts


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_all_answers_are_counted_once_however_many_may_wait(monkeypatch, most):
    monkeypatch.setattr(figures, "_MOST_WAITING", most)
    counts = AnswerCounts()
    for number in range(7):
        counts.answered("m", "list", 0.001 if number else 3600.0, empty=number == 1)
        assert len(counts._answered) < most
    counts.answered("other", "tags", 0.0005)
    counts.failed("m")

    taken = counts.taken()

    assert dict(zip(taken[::2], taken[1::2], strict=True)) == {"m l0": 6, "m l29": 1, "m e": 1, "m f": 1, "other t0": 1}
    assert counts.taken() == []
