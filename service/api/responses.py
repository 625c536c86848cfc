"""The bodies of answers, in the shapes of the contract. Scores are rounded only here."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from model.backend import Embedding
from model.evaluation.online.reach import Reach
from service.contract.embeddings import Encoding
from service.contract.fields import time_of
from service.recommend.note_cache import NoteSummary
from service.recommend.notes import NoteDetails, NoteList
from service.recommend.query import SCORE_DIGITS
from service.recommend.ranking import RelatedNote, in_common
from service.recommend.recommender import Recommender, ServiceStatus, TagSuggestions
from service.recommend.related import RelatedNotes
from service.store.experiments.watch import Watch
from service.store.records import pack_vector

_END = b"},"  # of a related note
_MAX_MESSAGE = 300  # characters; JSON needs at most 6 bytes for one, and an error is at most 2 KiB


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The one shape of every error, as JSON."""
    return orjson.dumps({"error": error_out(code, message, request_id)})


def error_out(code: str, message: str, request_id: str) -> dict[str, str]:
    """What an error says."""
    return {"code": code, "message": message[:_MAX_MESSAGE], "request_id": request_id}


def _notes_out(notes: Sequence[RelatedNote], ends: Iterable[bytes]) -> orjson.Fragment:
    """A list of related notes, each with its end. A summary is rendered once; ids need no escapes in JSON."""
    scores = orjson.dumps([round(note.score, SCORE_DIGITS) for note in notes])[1:-1].split(b",")
    starts = [
        (note.summary.rendered or _rendered(note.summary))
        if note.summary
        else b'{"note_id":"%b","score":' % note.note_id.encode()
        for note in notes
    ]
    parts = chain.from_iterable(zip(starts, scores, ends, strict=False))
    return orjson.Fragment(b"[%b]" % b"".join(parts)[:-1])


def _rendered(summary: NoteSummary) -> bytes:
    """A related note up to the value of its score; cached in the summary."""
    fields = {
        "note_id": summary.note_id,
        "title": summary.title,
        "category": summary.category,
        "hashtags": summary.hashtags,
    }
    summary.rendered = orjson.dumps(fields)[:-1] + b',"score":'
    return summary.rendered


def _explanation(note: RelatedNote, origins: Sequence[NoteSummary]) -> bytes:
    tags = [tag for origin in origins for tag in origin.hashtags]
    terms = {
        "cosine": round(note.cosine, SCORE_DIGITS),
        "popularity": round(note.popularity, SCORE_DIGITS),
        "half_life": round(note.half_life, SCORE_DIGITS),
        "boosts": round(note.boosts, SCORE_DIGITS),
        "hashtags_in_common": in_common(tags, note.summary.hashtags) if note.summary else [],
    }
    return b',"explain":%b},' % orjson.dumps(terms)


def related_out(
    related: RelatedNotes, recommender: Recommender, answer_id: str, *, explain: bool, note_id: str | None = None
) -> bytes:
    """Of every list, as JSON; with the note that it starts from, if it is one."""
    ends = (_explanation(note, related.summaries) for note in related.notes) if explain else repeat(_END)
    out = {
        "answer_id": answer_id,
        **({} if note_id is None else {"note_id": note_id}),
        "items": _notes_out(related.notes, ends),
        **_model_out(recommender),
        "generation": related.generation,
        "stale": related.stale,
        "degraded": related.degraded,
        "shards": {"ok": related.shards_ok, "total": related.shards_total},
        **({"duplicates_left_out": related.copies_left_out} if explain else {}),
    }
    return orjson.dumps(out)


def _model_out(recommender: Recommender) -> dict[str, str]:
    """The model that answers, and for which arm of an experiment, if for one."""
    assignment = recommender.assignment
    arm = {"experiment": assignment.experiment, "arm": assignment.arm.name} if assignment else {}
    return {"model": recommender.fingerprint, **arm}


def _category_out(category: tuple[str, float] | None) -> dict[str, Any] | None:
    return category and {"name": category[0], "score": round(category[1], SCORE_DIGITS)}


def tags_out(
    suggestions: TagSuggestions, recommender: Recommender, answer_id: str, *, with_related: bool
) -> dict[str, Any]:
    """Of `POST /notes/tags`."""
    copy = suggestions.copy
    out: dict[str, Any] = {
        "answer_id": answer_id,
        "hashtags": [
            {"tag": tag.tag, "score": round(tag.score, SCORE_DIGITS), "source": tag.source}
            for tag in suggestions.hashtags
        ],
        "category": _category_out(suggestions.category),
        "duplicate_of": copy and {"note_id": copy[0], "similarity": round(copy[1], SCORE_DIGITS)},
        **_model_out(recommender),
    }
    if with_related:
        out["related"] = _notes_out(suggestions.related, repeat(_END))
    return out


def embeddings_out(embeddings: Sequence[Embedding], fingerprint: str, encoding: Encoding) -> bytes:
    """Of `POST /v1/embeddings`, as JSON; numbers with all digits of a float32."""
    tokens = sum(embedding.tokens for embedding in embeddings)
    out = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(embedding.vector, encoding)}
            for index, embedding in enumerate(embeddings)
        ],
        "model": fingerprint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(out, option=orjson.OPT_SERIALIZE_NUMPY)


def _encoded(vector: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32] | str:
    return b64encode(pack_vector(vector)).decode() if encoding == "base64" else vector


def note_out(details: NoteDetails) -> dict[str, Any]:
    """Of `GET /notes/{id}`."""
    record, suggestion = details.record, details.suggestion
    note = record.note
    predicted = suggestion if suggestion and not suggestion.failure else None
    return {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "author": record.author,
        "exposure": record.exposure,
        "created_at": record.created_at,
        "attributes": record.attributes,
        "language": record.language,
        "hidden": record.hidden,
        "detected_language": record.detected_language,
        "version": record.version,
        "status": details.status,
        "reason": suggestion.failure if suggestion and details.status == "failed" else None,
        "suggested_hashtags": predicted
        and [{"tag": tag, "score": round(score, SCORE_DIGITS)} for tag, score in predicted.hashtags],
        "suggested_category": predicted and _category_out(predicted.category),
    }


def notes_out(listed: NoteList) -> dict[str, Any]:
    """Of `GET /notes`."""
    return {"items": list(map(note_out, listed.notes)), "next": listed.next}


def status_out(
    status: ServiceStatus, fingerprint: str, reach: Reach | None, watch: Watch | None, warnings: Sequence[str]
) -> dict[str, Any]:
    """Of `GET /status`."""
    counts, shards = status.counts, status.shards
    return {
        "notes": {
            "live": counts.live,
            "searchable": status.searchable,
            "pending": status.pending,
            "failed": counts.failed,
        },
        "queue": {"depth": counts.queue_depth, "oldest_s": round(counts.oldest_job_s, 3)},
        "index": {
            "generation": max((shard.generation for shard in shards), default=None),
            "shards_ok": len(shards),
            "shards_total": status.shards_total,
            "shards": shards,
        },
        "model": fingerprint,
        "freshness_s": {"p50": status.freshness(0.5), "p99": status.freshness(0.99)},
        "reach": reach
        and {
            "coverage": round(reach.coverage, SCORE_DIGITS),
            "gini": round(reach.gini, SCORE_DIGITS),
            "hubs": reach.hubs,
            "hub_share": round(reach.hub_share, SCORE_DIGITS),
        },
        "watch": watch
        and {
            "model": watch.model,
            "before": watch.before,
            "state": watch.state,
            "since": time_of(watch.since),
            "ended": None if watch.ended is None else time_of(watch.ended),
            "reason": watch.reason or None,
            "detail": watch.detail or None,
            "blocked": watch.blocked or None,
        },
        "warnings": warnings,
    }
