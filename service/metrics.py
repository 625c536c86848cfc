"""Every metric of every process. A metric is an API: a change of name or label stands in the changelog.

Labels are bounded: ``route`` is the template of a route and never a path, ``shard`` a number, ``fingerprint`` that of
a registered model, the others one of the values in their comments. Durations are in seconds.
"""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each counter, of no use

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

BUILD_INFO = Gauge(
    "notellm_build_info",
    "Always 1; the labels name the process. The fingerprint is that of the checkpoint, empty where there is none.",
    ["process", "version", "fingerprint"],
)
ACTIVE_MODEL = Gauge(
    "notellm_active_model", "1 for the model that a gateway asks, 0 for those before.", ["fingerprint"]
)
SHARD_UP = Gauge(
    "notellm_shard_up",
    "1 while a gateway reaches the shard and it holds an index of the active model, else 0.",
    ["shard"],
)

REDIS_PROBLEM = Gauge(
    "notellm_redis_problem",
    "1 while this is wrong with the Redis of a process, else 0; NaN where its user may not find out.",
    ["cause"],  # the causes of service.store.requirements
)
REDIS_DENIED = Counter("notellm_redis_denied_total", "Calls for which the process's user of Redis lacks a right.")

HTTP_REQUESTS = Counter("notellm_http_requests_total", "Requests answered.", ["route", "method", "status"])
HTTP_SECONDS = Histogram(
    "notellm_http_request_duration_seconds",
    "From the first byte of a request to the last of its answer.",
    ["route"],
    buckets=_FAST,
)
HTTP_REFUSED = Counter(
    "notellm_http_refused_total",
    "Requests refused before they were looked at; they are in no other figure of requests.",
    ["route", "code"],  # overloaded | rate_limited
)
HTTP_IN_FLIGHT = Gauge(
    "notellm_http_in_flight",
    "Requests under way.",
    ["kind"],  # related | reads | writes | bulk | tags | public
)
HTTP_CONNECTIONS = Gauge("notellm_http_connections", "Connections of clients.")
KEYS = Gauge("notellm_keys", "Live keys; 0 also when the service asks for none.")
KEYS_RELOADS = Counter(
    "notellm_keys_reloads_total",
    "How often a changed keys file was read.",
    ["outcome"],  # ok | failed: the keys that were stay
)
RELATED_DEGRADED = Counter("notellm_related_degraded_total", "Answers to related without a shard or without the store.")
TAGS_SUGGESTED = Counter(
    "notellm_tags_suggested_total",
    "Hashtags suggested for drafts.",
    ["source"],  # generated | neighbors | both
)
NOTES_ACCEPTED = Counter("notellm_notes_accepted_total", "Notes written, including those that changed nothing.")
EVENTS = Counter(
    "notellm_events_total",
    "Events of readers, by delivery.",
    ["outcome"],  # accepted | duplicate
)
ANSWERS_LOGGED = Counter(
    "notellm_answers_logged_total",
    "Answers to readers, by what became of their records.",
    ["outcome"],  # logged | dropped: too many waited for the store
)
REACH_COVERAGE = Gauge(
    "notellm_reach_coverage", "Share of the live notes that stood in a list of any reader today or yesterday (UTC)."
)
REACH_GINI = Gauge(
    "notellm_reach_gini", "How unequally places in these lists fall to notes: 0 alike, near 1 all to few."
)
REACH_HUBS = Gauge("notellm_reach_hubs", "Notes in more of these lists than two standard deviations above the mean.")
GUARD = Gauge(
    "notellm_guard",
    "1 while this is so of the model that was activated last, else 0.",
    ["state"],  # watching | blocked: it should be taken back and cannot be | taken_back: within a day
)
MODELS_TAKEN_BACK = Counter(
    "notellm_models_taken_back_total",
    "Models that were taken back for this worker's.",
    ["reason"],  # those of service.experiments.guard
)
NOTES_LOOKED_UP = Counter(
    "notellm_cards_total",
    "Notes looked up for answers.",
    ["source"],  # held: in the gateway's memory and confirmed | fetched: from the store
)
FRESHNESS_SECONDS = Histogram(
    "notellm_freshness_seconds",
    "From the acknowledgement of a write to the note being searchable, as seen by writes that wait.",
    buckets=_SLOW,
)

NOTES_EMBEDDED = Counter("notellm_notes_embedded_total", "Notes embedded and published.")
NOTES_FAILED = Counter("notellm_notes_failed_total", "Notes sent to the dead-letter stream.")
EMBED_STAGE_SECONDS = Histogram(
    "notellm_embed_stage_duration_seconds",
    "Time of a note in the queue and in the model (infer), of a call in tokenize, and of a step in its two parts.",
    ["stage"],  # queue | tokenize | infer, and of a step, where the backend can tell, prefill | decode
    buckets=_FAST,
)
EMBED_BATCH_TOKENS = Histogram(
    "notellm_embed_batch_tokens",
    "Prompt tokens that joined the model at one step, of stored notes or drafts, without padding.",
    buckets=_TOKENS,
)
EMBED_TOKENS = Counter(
    "notellm_embed_tokens_total", "Prompt tokens read by the model, without padding; their rate is tokens per second."
)
EMBED_CACHE_HITS = Counter(
    "notellm_embed_cache_hits_total",
    "Notes published without a forward pass, because the model had read the same text before.",
    ["cache"],  # stored: the note's own last prediction | recent: one of the same text in another note or version
)
EMBED_OUT_OF_MEMORY = Counter(
    "notellm_embed_out_of_memory_total", "Steps that ran out of memory; fewer tokens were tried then."
)
CATEGORIES_SAMPLED = Counter(
    "notellm_categories_sampled_total", "Stored notes whose category the model also wrote without the closed set."
)
CATEGORIES_ILLEGAL = Counter(
    "notellm_categories_illegal_total", "Of those sampled, categories outside the closed set: Ill. of section 5.5."
)
GPU_MEMORY_BYTES = Gauge("notellm_gpu_memory_bytes", "GPU memory that the worker's process holds; 0 without a GPU.")

INDEX_NOTES = Gauge("notellm_index_notes", "Notes that a shard can find.", ["shard", "fingerprint"])
INDEX_GENERATION = Gauge("notellm_index_generation", "How often a shard's base was rebuilt.", ["shard", "fingerprint"])
WEBHOOK_NOTICES = Counter(
    "notellm_webhook_notices_total",
    "Notices that the webhook is done with: told, refused by it with 4xx, or dropped after an hour of failures.",
    ["outcome"],  # told | refused | dropped
)
WEBHOOK_REQUESTS_FAILED = Counter(
    "notellm_webhook_requests_failed_total", "Requests to the webhook that failed, and are tried again."
)
INDEX_CHANGES = Counter(
    "notellm_index_changes_total",
    "Changes read from the stream.",
    ["shard", "fingerprint", "outcome"],  # applied | stale | the reason of a refusal
)
INDEX_FRESHNESS_SECONDS = Histogram(
    "notellm_index_freshness_seconds",
    "From a change entering the stream to its being searchable, by the clocks of Redis and of the indexer.",
    ["shard", "fingerprint"],
    buckets=_SLOW,
)
NOTE_FRESHNESS_SECONDS = Histogram(
    "notellm_note_freshness_seconds",
    "From the write of a note to its being searchable, by the clocks of Redis and of the indexer.",
    ["shard", "fingerprint"],
    buckets=_SLOW,
)
INDEX_RECALL = Gauge(
    "notellm_index_recall",
    "Recall@10 against exact search, over a sample of a shard's own notes; NaN before it was measured.",
    ["shard", "fingerprint"],
)
INDEX_IMBALANCE = Gauge(
    "notellm_index_imbalance",
    "How much more a search reads than with lists of equal length; 1 is even.",
    ["shard", "fingerprint"],
)
INDEX_ROWS = Gauge(
    "notellm_index_rows",
    "Rows that a shard holds: searched by lists, searched one by one, or dead until it is built anew.",
    ["shard", "fingerprint", "part"],  # base | delta | dead | tombstones
)
INDEX_LAG_CHANGES = Gauge(
    "notellm_index_lag_changes",
    "Changes in the stream that a shard has not applied yet, counted up to 10,000.",
    ["shard", "fingerprint"],
)
INDEX_LAG_SECONDS = Gauge(
    "notellm_index_lag_seconds",
    "Age of the oldest change that a shard has not applied yet; 0 when there is none.",
    ["shard", "fingerprint"],
)
INDEX_BYTES_PER_NOTE = Gauge(
    "notellm_index_bytes_per_note",
    "Memory of the process that cannot be dropped, by notes of all its indexes; files that are mapped do not count.",
    ["shard"],
)
INDEX_CHORES_FAILED = Counter(
    "notellm_index_chores_failed_total",
    "Chores that failed while the shard went on answering; a full disk shows here first.",
    ["shard", "fingerprint", "chore"],  # snapshot | compaction | probe
)
INDEX_SNAPSHOT_AGE_SECONDS = Gauge(
    "notellm_index_snapshot_age_seconds",
    "Age of a shard's last snapshot, or of its start, while there are changes that no snapshot holds; else 0.",
    ["shard", "fingerprint"],
)
INDEX_CURSOR_AGE_SECONDS = Gauge(
    "notellm_index_cursor_age_seconds", "Age of the last change that a shard applied.", ["shard", "fingerprint"]
)
