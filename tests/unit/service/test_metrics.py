"""The names and labels of the metrics are an API: dashboards and alerts are written against this table."""

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from service import metrics

CONTRACT = {
    "notellm_build_info": ("gauge", ("process", "version", "fingerprint")),
    "notellm_active_model": ("gauge", ("fingerprint",)),
    "notellm_http_requests": ("counter", ("route", "method", "status")),
    "notellm_http_request_duration_seconds": ("histogram", ("route",)),
    "notellm_keys": ("gauge", ()),
    "notellm_keys_reloads": ("counter", ("outcome",)),
    "notellm_related_degraded": ("counter", ()),
    "notellm_tags_suggested": ("counter", ("source",)),
    "notellm_events": ("counter", ("outcome",)),
    "notellm_cards": ("counter", ("source",)),
    "notellm_notes_accepted": ("counter", ()),
    "notellm_freshness_seconds": ("histogram", ()),
    "notellm_notes_embedded": ("counter", ()),
    "notellm_notes_failed": ("counter", ()),
    "notellm_embed_stage_duration_seconds": ("histogram", ("stage",)),
    "notellm_embed_batch_tokens": ("histogram", ()),
    "notellm_embed_tokens": ("counter", ()),
    "notellm_embed_cache_hits": ("counter", ("cache",)),
    "notellm_embed_out_of_memory": ("counter", ()),
    "notellm_categories_sampled": ("counter", ()),
    "notellm_categories_illegal": ("counter", ()),
    "notellm_gpu_memory_bytes": ("gauge", ()),
    "notellm_queue_depth": ("gauge", ()),
    "notellm_queue_oldest_seconds": ("gauge", ()),
    "notellm_index_notes": ("gauge", ("shard", "fingerprint")),
    "notellm_index_generation": ("gauge", ("shard", "fingerprint")),
    "notellm_index_changes": ("counter", ("shard", "fingerprint", "outcome")),
    "notellm_index_cursor_age_seconds": ("gauge", ("shard", "fingerprint")),
    "notellm_index_freshness_seconds": ("histogram", ("shard", "fingerprint")),
    "notellm_index_chores_failed": ("counter", ("shard", "fingerprint", "chore")),
    "notellm_index_recall": ("gauge", ("shard", "fingerprint")),
    "notellm_index_imbalance": ("gauge", ("shard", "fingerprint")),
    "notellm_index_rows": ("gauge", ("shard", "fingerprint", "part")),
    "notellm_index_lag_changes": ("gauge", ("shard", "fingerprint")),
    "notellm_index_lag_seconds": ("gauge", ("shard", "fingerprint")),
    "notellm_index_bytes_per_note": ("gauge", ("shard",)),
}


def ours() -> list[MetricWrapperBase]:
    return [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]


def test_there_are_exactly_the_metrics_of_the_table():
    assert {metric._name: (metric._type, metric._labelnames) for metric in ours()} == CONTRACT


def test_every_metric_is_registered_and_explains_itself():
    registered = {family.name: family.documentation for family in REGISTRY.collect()}

    assert all(registered[name].endswith(".") for name in CONTRACT)


def test_durations_reach_from_the_fastest_answer_to_the_longest_deadline():
    assert metrics.HTTP_SECONDS._upper_bounds[0] <= 0.001
    assert 15.0 in metrics.HTTP_SECONDS._upper_bounds
