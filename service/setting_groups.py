"""The groups of settings: of each part of the service what an operator may set, with its bounds and its default."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

ANY_ORIGIN = "*"
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]{1,5})?|[a-z]+://\[[0-9a-f:.]+\](:[0-9]{1,5})?", re.IGNORECASE
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(host: str) -> str:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or bare.strip() != bare:
        raise ValueError("an address or a name such as 127.0.0.1, ::1 or localhost")
    return bare


def _origin(text: str) -> str:
    if text != ANY_ORIGIN and not _ORIGIN.fullmatch(text):
        raise ValueError('an origin such as https://app.example, without a path or a slash at its end, or "*"')
    return text.lower()


Host = Annotated[str, AfterValidator(_host)]
Origin = Annotated[str, AfterValidator(_origin)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class HttpSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the gateway listens, and how long a request may take."""

    host: Host = Field(default="127.0.0.1", description="Address of the public API.")
    port: Port = Field(default=8000, description="Port of the public API; 0 takes a free one.")
    related_s: PositiveFloat = Field(default=1.0, description="Deadline of GET related.")
    write_s: PositiveFloat = Field(default=2.0, description="Deadline of a write, without the caller's wait.")
    tags_s: PositiveFloat = Field(default=15.0, description="Deadline of POST /notes/tags and /v1/embeddings.")
    popularity_weight: NonNegativeFloat = Field(
        default=0.01,
        description="b of debias: how much of a cosine a note loses per unit of log(1 + exposure) at debias=1; "
        "`notellm evaluate` fits it.",
    )
    cached_notes: PositiveInt = Field(
        default=100_000, description="Notes whose title, labels and vector a gateway caches; about 2 kB each."
    )
    max_body_bytes: PositiveInt = Field(default=512 * 1024, description="Largest body of one note or draft.")
    max_bulk_bytes: PositiveInt = Field(default=32 * 1024 * 1024, description="Largest body of a bulk write.")
    max_related_bytes: PositiveInt = Field(
        default=4 * 1024 * 1024, description="Largest body of a request for related notes, and of a batch of them."
    )
    max_events_bytes: PositiveInt = Field(default=4 * 1024 * 1024, description="Largest body of a delivery of events.")
    max_embeddings_bytes: PositiveInt = Field(
        default=16 * 1024 * 1024, description="Largest body of texts to embed; 64 of the longest take 15 MiB at most."
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="Names by which callers may reach a service without keys, besides localhost and its own address.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        description='Origins of other sites whose pages may call the API, such as ["https://app.example"]; "*" is '
        "every one, and needs keys of which none may write.",
    )
    allow_open: bool = Field(
        default=False,
        description="1 listens beyond loopback without keys, where anybody may read and write: only for a network "
        "that is closed otherwise, such as a container's.",
    )


class LimitSettings(BaseModel, frozen=True, extra="forbid"):
    """How much one gateway process admits at the same time and from one key, and how long it waits for a request."""

    related: PositiveInt = Field(default=96, description="GET related under way at most; more are refused with 503.")
    reads: PositiveInt = Field(default=96, description="Other reads under way at most.")
    writes: PositiveInt = Field(default=128, description="Writes of one note under way at most, waiting ones too.")
    bulk: PositiveInt = Field(default=4, description="Bulk writes under way at most.")
    tags: PositiveInt = Field(default=96, description="POST /notes/tags and /v1/embeddings under way at most.")
    public: PositiveInt = Field(
        default=32, description="Requests under way at most that need no key, or have none where one is needed."
    )
    key_share: float = Field(
        default=0.75, gt=0, le=1, description="Share of each of these that one key may hold; above, it gets 429."
    )
    rate_per_s: NonNegativeFloat = Field(
        default=0, description="Requests a second of one key in the long run; above, it gets 429. 0 sets no bound."
    )
    burst: PositiveInt = Field(default=100, description="Requests of a key that may come at once in spite of its rate.")
    head_bytes: PositiveInt = Field(default=64 * 1024, description="Largest request line with headers.")
    body_s: PositiveFloat = Field(default=9.0, description="Time for a body to come; later, it is refused with 408.")
    body_bytes_per_s: PositiveInt = Field(
        default=1024, description="What a body must bring a second after its first two, or it is refused with 408."
    )
    bodies_bytes: PositiveInt = Field(default=256 * 1024 * 1024, description="Bodies held in memory, all together.")
    idle_s: PositiveInt = Field(default=75, description="Time that a connection is kept between two requests.")
    drain_s: NonNegativeFloat = Field(
        default=0, description="Time between /readyz turning 503 on SIGTERM and the end of listening."
    )


class OpsSettings(BaseModel, frozen=True, extra="forbid"):
    """The listener of /livez, /readyz and /metrics: one for each process."""

    host: Host = Field(default="127.0.0.1", description="Address of the operations listener.")
    port: Port = Field(default=9000, description="Port of the operations listener; 0 takes a free one.")
    port_file: Path | None = Field(default=None, description="File that the port is written to once it is bound.")


class WorkerSettings(BaseModel, frozen=True, extra="forbid"):
    """How a worker runs the model."""

    backend: Literal["auto", "hf", "openvino", "vllm"] = Field(
        default="auto",
        description="What runs the network: hf (plain transformers), openvino on a CPU or vllm on a GPU; auto is "
        "openvino where it is installed and a CPU computes in float32, else hf.",
    )
    addresses: tuple[str, ...] = Field(
        default=("127.0.0.1:9100",), description="Every worker: host:port, or the path of a unix socket."
    )
    number: NonNegativeInt = Field(default=0, description="Which of the addresses this worker is.")
    max_batch_tokens: PositiveInt = Field(
        default=4096, description="Padded tokens of the notes in the model at a time."
    )
    max_drafts: PositiveInt = Field(default=64, description="Drafts waiting at most; more are refused with 503.")
    hashtags: PositiveInt = Field(default=5, le=10, description="Hashtags suggested for a stored note.")
    cached_readings: NonNegativeInt = Field(
        default=4096,
        description="Predictions that a worker caches, so that the same text in another note costs nothing.",
    )
    free_category_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of stored notes whose category is also written freely, for Ill."
    )
    threads: NonNegativeInt = Field(default=0, description="Threads of the network; 0 leaves it to the backend.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the network; auto is bfloat16 on a GPU, and on a CPU that computes in it if the "
        "model was saved so, else float32.",
    )
    serving_dir: Path = Field(default=Path("serving"), description="Where vLLM's form of a checkpoint is written.")
    tensor_parallel: PositiveInt = Field(default=1, description="GPUs that share one copy of the weights; vllm only.")
    takes_over: bool = Field(
        default=False,
        description="1 activates this worker's model by itself once every note can be found with it; `serve` sets it.",
    )
    gpu_memory: PositiveFloat = Field(
        default=0.9, le=1.0, description="Share of a GPU's memory for weights and cache; vllm only."
    )


class IndexSettings(BaseModel, frozen=True, extra="forbid"):
    """The shards of the index."""

    addresses: tuple[str, ...] = Field(
        default=("127.0.0.1:9200", "127.0.0.1:9201"),
        description="Every shard in order: host:port, or the path of a unix socket; replicas with commas between.",
    )
    number: NonNegativeInt = Field(default=0, description="Which shard this indexer is.")
    replica: NonNegativeInt = Field(default=0, description="Which replica of its shard this indexer is.")
    snapshot_dir: Path = Field(
        default=Path("index"), description="Folder of the snapshots; one subfolder a shard, and in it one a model."
    )
    snapshot_every_s: PositiveFloat = Field(default=60.0, description="Time between snapshots while notes change.")
    threads: PositiveInt = Field(default=1, description="Threads of one search.")


class AttributionSettings(BaseModel, frozen=True, extra="forbid"):
    """The log of what was answered."""

    share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of readers whose answers are logged, for sites with many; 0 logs none.",
    )
    answers: PositiveInt = Field(
        default=1_000_000, description="Answers that the log in Redis keeps at most; a million takes about 0.1 GB."
    )
    days: PositiveFloat = Field(default=30.0, description="Days that it keeps an answer at most.")


class GuardSettings(BaseModel, frozen=True, extra="forbid"):
    """When a model that was activated is taken back by itself: its bounds, against the model before."""

    hours: NonNegativeFloat = Field(default=24, description="Hours that a model is watched for; 0 watches none.")
    minutes: PositiveInt = Field(
        default=5, le=60, description="Minutes on end in each of which its answers have to be worse."
    )
    answers: PositiveInt = Field(
        default=200, description="Answers of the model before, in the hour before, below which nothing is decided."
    )
    failed: PositiveFloat = Field(default=0.01, le=1, description="Share of answers that may fail beyond before.")
    empty: PositiveFloat = Field(default=0.05, le=1, description="Share of lists that may be empty beyond before.")
    slow: float = Field(
        default=2.0, ge=1, description="How many times as long as before the 95th percentile may take; 50 ms always."
    )
    clicks: float = Field(
        default=0.7, gt=0, lt=1, description="What the share of shown items that are clicked must keep of that before."
    )
    click_minutes: PositiveFloat = Field(
        default=15, description="Minutes from its activation to the first look at clicks, for they come later."
    )
    impressions: PositiveInt = Field(default=1000, description="Items shown below which clicks decide nothing.")
