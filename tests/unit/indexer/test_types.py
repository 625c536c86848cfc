"""Labels of an index."""

from indexer.types import label


def test_no_label_is_zero_and_labels_differ():
    assert label(None) == label("") == 0
    assert len({label("Travel"), label("travel"), label("Home Decor")}) == 3
