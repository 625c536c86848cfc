"""The bodies of answers, as the contract shapes them. Scores are rounded here, and nowhere before."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import orjson

from service.recommend.note_cache import NoteSummary
from service.recommend.recommender import NoteDetails, ServiceStatus, TagSuggestions
from service.recommend.related import RelatedNote, RelatedNotes
from service.recommend.rerank import in_common

_DIGITS = 6
_END = b"}"  # of an item
_MAX_MESSAGE = 300  # characters; JSON needs at most 6 bytes for one, and an error is at most 2 KiB


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The one shape of every error, as JSON."""
    return orjson.dumps({"error": {"code": code, "message": message[:_MAX_MESSAGE], "request_id": request_id}})


def _items_out(items: Sequence[RelatedNote], ends: Iterable[bytes]) -> list[bytes]:
    """Items as JSON, each with its end. A note's part is written once; JSON leaves the characters of ids alone."""
    scores = orjson.dumps([round(item.score, _DIGITS) for item in items])[1:-1].split(b",")
    starts = (
        (item.card.rendered or _rendered(item.card))
        if item.card
        else b'{"note_id":"%b","score":' % item.note_id.encode()
        for item in items
    )
    return [start + score + end for start, score, end in zip(starts, scores, ends, strict=False)]


def _rendered(summary: NoteSummary) -> bytes:
    """A note as an item of an answer, up to the value of its score; kept with the summary."""
    shown = {
        "note_id": summary.note_id,
        "title": summary.title,
        "category": summary.category,
        "hashtags": summary.hashtags,
    }
    summary.rendered = orjson.dumps(shown)[:-1] + b',"score":'
    return summary.rendered


def _explanation(item: RelatedNote, related: RelatedNotes) -> bytes:
    shared = in_common(related.card.hashtags, item.card.hashtags) if related.card and item.card else []
    terms = {
        "cosine": round(item.cosine, _DIGITS),
        "popularity": round(item.popularity, _DIGITS),
        "hashtags_in_common": shared,
    }
    return b',"explain":%b}' % orjson.dumps(terms)


def related_out(related: RelatedNotes, fingerprint: str, *, explain: bool) -> bytes:
    """Of `GET /notes/{id}/related`, as JSON: the cards of its items were written before."""
    ends = (_explanation(item, related) for item in related.items) if explain else repeat(_END)
    items = _items_out(related.items, ends)
    about = {
        "note_id": related.note_id,
        "items": orjson.Fragment(b"[%b]" % b",".join(items)),
        "model": fingerprint,
        "generation": related.generation,
        "degraded": related.degraded,
        "shards": {"ok": related.shards_ok, "total": related.shards_total},
    }
    return orjson.dumps(about)


def _category_out(category: tuple[str, float] | None) -> dict[str, Any] | None:
    return category and {"name": category[0], "score": round(category[1], _DIGITS)}


def tags_out(tagged: TagSuggestions, fingerprint: str, *, with_related: bool) -> dict[str, Any]:
    """Of `POST /notes/tags`."""
    out: dict[str, Any] = {
        "hashtags": [
            {"tag": tag.tag, "score": round(tag.score, _DIGITS), "source": tag.source} for tag in tagged.hashtags
        ],
        "category": _category_out(tagged.category),
        "model": fingerprint,
    }
    if with_related:
        out["related"] = [orjson.Fragment(item) for item in _items_out(tagged.related, repeat(_END))]
    return out


def note_out(described: NoteDetails) -> dict[str, Any]:
    """Of `GET /notes/{id}`."""
    record, suggestion = described.record, described.suggestion
    note = record.note
    read = suggestion if suggestion and not suggestion.failure else None
    return {
        "note_id": note.id,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "author": record.author,
        "exposure": note.exposure,
        "created_at": record.created_at,
        "version": record.version,
        "status": described.status,
        "reason": suggestion.failure if suggestion and described.status == "failed" else None,
        "suggested_hashtags": read and [{"tag": tag, "score": round(score, _DIGITS)} for tag, score in read.hashtags],
        "suggested_category": read and _category_out(read.category),
    }


def status_out(status: ServiceStatus, fingerprint: str) -> dict[str, Any]:
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
    }
