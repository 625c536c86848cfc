"""The table of metrics says what running processes export, and nothing else."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from support.metrics_table import documented
from support.watched import Watched

SUFFIX = {"counter": "_total"}
# What a histogram and a counter bring along.
OF_LIBRARY = {"le"}


def families(text: str) -> Iterator[tuple[str, Metric]]:
    """Ours, by the name in the table."""
    for family in text_string_to_metric_families(text):
        if family.name.startswith("notellm_"):
            yield family.name + SUFFIX.get(family.type, ""), family


def samples(family: Metric) -> list[Sample]:
    return [sample for sample in family.samples if not sample.name.endswith("_created")]


def test_every_exported_metric_is_documented_with_its_type_and_labels(watched: Watched):
    rows = documented()
    for text in watched.exported().values():
        for name, family in families(text):
            assert (name, family.type) == (rows[name].name, rows[name].type)
            for sample in samples(family):
                assert set(sample.labels) - OF_LIBRARY == set(rows[name].labels), name


def test_every_documented_metric_is_exported_by_each_process_that_the_table_names(watched: Watched):
    exported = {role: dict(families(text)) for role, text in watched.exported().items()}

    assert exported.keys() == {"gateway", "worker", "indexer"}
    for row in documented().values():
        assert row.processes <= {role for role, found in exported.items() if row.name in found}, row.name


def test_no_process_counts_what_the_table_gives_to_another(watched: Watched):
    rows = documented()
    for role, text in watched.exported().items():
        for name, family in families(text):
            if any(sample.value for sample in samples(family)):
                assert role in rows[name].processes, name


def test_labels_take_no_values_but_those_of_the_table(watched: Watched):
    rows = documented()
    for text in watched.exported().values():
        for name, family in families(text):
            for sample in samples(family):
                for label, allowed in rows[name].values.items():
                    assert sample.labels[label] in allowed, name
