"""Figures as tables show them."""

import pytest

from model.evaluation.metrics import Interval
from model.evaluation.tables import markdown, percent, percent_interval


@pytest.mark.parametrize(("share", "text"), [(0.8416, "84.2"), (1, "100.0"), (-0.00001, "0.0"), (-0.021, "-2.1")])
def test_a_share_is_shown_in_percent_without_a_negative_zero(share, text):
    assert percent(share) == text


def test_an_interval_is_shown_as_its_mean_and_bounds():
    assert percent_interval(Interval(0.5, 0.25, 0.75)) == "50.0 (25.0 to 75.0)"


def test_the_first_column_is_text_and_the_others_are_figures():
    assert markdown(["name", "a"], [["x", "1"], ["y", "2"]]).splitlines() == [
        "| name | a |", "| --- | ---: |", "| x | 1 |", "| y | 2 |",
    ]  # fmt: skip
