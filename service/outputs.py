"""The bodies of answers, as the contract shapes them. Scores are rounded here, and nowhere before."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import orjson

from service.neighborhood import Item, Related
from service.ranking import in_common
from service.recommend import Described, ServiceStatus, Tagged

_DIGITS = 6
_END = b"}"  # of an item


def _items_out(items: Sequence[Item], ends: Iterable[bytes]) -> list[bytes]:
    """Items as JSON, each with its end. A card's part was written before; JSON leaves the characters of ids alone."""
    scores = orjson.dumps([round(item.score, _DIGITS) for item in items])[1:-1].split(b",")
    starts = (item.card.json if item.card else b'{"note_id":"%b","score":' % item.note_id.encode() for item in items)
    return [start + score + end for start, score, end in zip(starts, scores, ends, strict=False)]


def _explanation(item: Item, related: Related) -> bytes:
    shared = in_common(related.card.hashtags, item.card.hashtags) if related.card and item.card else []
    terms = {
        "cosine": round(item.cosine, _DIGITS),
        "popularity": round(item.popularity, _DIGITS),
        "hashtags_in_common": shared,
    }
    return b',"explain":%b}' % orjson.dumps(terms)


def related_out(related: Related, fingerprint: str, *, explain: bool) -> bytes:
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


def tags_out(tagged: Tagged, fingerprint: str, *, with_related: bool) -> dict[str, Any]:
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


def note_out(described: Described) -> dict[str, Any]:
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
