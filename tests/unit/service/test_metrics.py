"""The names and labels of the metrics are an API: dashboards and alerts are written against the table in deploy/."""

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from support.metrics_table import documented

from service import metrics
from service.shard import store_metrics


def ours() -> list[MetricWrapperBase]:
    values = (*vars(metrics).values(), *vars(store_metrics).values())
    return [metric for metric in values if isinstance(metric, MetricWrapperBase)]


def name_of(metric: MetricWrapperBase) -> str:
    """As it is exported."""
    return metric._name + ("_total" if metric._type == "counter" else "")


def test_there_are_exactly_the_metrics_of_the_table():
    table = {row.name: (row.type, row.labels) for row in documented().values()}

    assert {name_of(metric): (metric._type, metric._labelnames) for metric in ours()} == table


def test_every_metric_is_registered_and_explains_itself():
    registered = {family.name: family.documentation for family in REGISTRY.collect()}

    assert all(registered[metric._name].endswith(".") for metric in ours())


def test_durations_reach_from_the_fastest_answer_to_the_longest_deadline():
    assert metrics.HTTP_SECONDS._upper_bounds[0] <= 0.001
    assert 15.0 in metrics.HTTP_SECONDS._upper_bounds
