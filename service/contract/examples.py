"""One request and one answer of each kind, as OpenAPI shows them, by name. The notes are invented."""

from typing import Any

_FINGERPRINT = "2f6b0c1d9a4e8f37"
_NOTE = {
    "title": "Three days in Kyoto",
    "content": "Temples in the morning, markets at noon, and a quiet garden before dinner.",
    "hashtags": ["travel", "kyoto"],
    "category": "Travel",
    "author": "author-17",
    "exposure": 120,
    "created_at": "2026-03-14T09:30:00+09:00",
    "attributes": {"city": "Kyoto", "price": 120, "season": ["spring", "autumn"], "wheelchair": True},
    "language": None,
    "hidden": False,
}
_EXPERIMENT: dict[str, Any] = {
    "name": "winter-model",
    "state": "runs",
    "share": 0.5,
    "started": "2026-05-04T09:30:00Z",
    "ended": None,
    "shipped": None,
    "arms": [
        {"name": "A", "model": "0a9b8c7d6e5f4a3b", "rules": {}},
        {"name": "B", "model": _FINGERPRINT, "rules": {"diversity": 0.3}},
    ],
}
_SHORT_NOTE = {"title": "Lentil soup for a week"}
_ITEM: dict[str, Any] = {
    "note_id": "kyoto-5",
    "score": 0.8312,
    "title": "Kyoto by bus",
    "category": "Travel",
    "hashtags": ["kyoto", "bus"],
}
_LIST: dict[str, Any] = {
    "answer_id": "5d0c6a94c1b7e820.r.1f3a9c52",
    "items": [_ITEM],
    "model": _FINGERPRINT,
    "generation": 12,
    "stale": False,
    "degraded": False,
    "shards": {"ok": 4, "total": 4},
}
_RELATED: dict[str, Any] = _LIST | {"note_id": "kyoto-3"}
_EXPLANATION = {
    "cosine": 0.8401,
    "popularity": 0.0089,
    "half_life": 1.0,
    "boosts": 1.0,
    "hashtags_in_common": ["kyoto"],
}
_RULES: dict[str, Any] = {
    "k": 20,
    "filter": 'category = "Travel" AND NOT hashtags = "ad"',
    "boosts": [{"filter": "exposure < 100", "factor": 1.2}],
    "group_by": "author",
}
_WRITTEN = {"note_id": "kyoto-3", "version": 2}

_STORED = {
    "note_id": "kyoto-3",
    **_NOTE,
    "detected_language": "en",
    "version": 2,
    "status": "searchable",
    "reason": None,
    "suggested_hashtags": [{"tag": "temples", "score": 0.64}],
    "suggested_category": {"name": "Travel", "score": 0.97},
}

EXAMPLES: dict[str, Any] = {
    "note": _NOTE,
    "short_note": _SHORT_NOTE,
    "patch": {"hidden": True, "category": None, "attributes": {"price": 95, "season": None}},
    "notes": [{"note_id": "kyoto-3", **_NOTE}, {"note_id": "soup-1", **_SHORT_NOTE}],
    "lines": (
        '{"note_id": "soup-1", "title": "Lentil soup for a week"}\n'
        '{"note_id": "soup-2", "title": "A lighter soup", "hashtags": ["cooking"]}\n'
    ),
    "draft": {"title": "A weekend of ramen in Osaka", "content": "Four bowls in two days, ranked.", "related": 1},
    "known_hashtags_only": {
        "title": "Ramen at home",
        "hashtags": ["cooking"],
        "max_hashtags": 3,
        "vocabulary": "known",
    },
    "events": {
        "events": [
            {
                "event_id": "e-1",
                "user_id": "u-9",
                "note_id": "kyoto-5",
                "source_note_id": "kyoto-3",
                "type": "click",
                "ts": "2026-03-15T20:01:07Z",
            },
            {"event_id": "e-2", "user_id": "u-9", "note_id": "soup-1", "type": "view", "ts": 1773604870, "value": 12.5},
            {
                "event_id": "e-3",
                "user_id": "u-9",
                "note_id": "soup-1",
                "source_note_id": "kyoto-3",
                "type": "dismiss",
                "ts": 1773604891.25,
                "answer_id": "5d0c6a94c1b7e820.r.1f3a9c52",
                "position": 4,
            },
        ]
    },
    "related": _RELATED,
    "explained": _RELATED | {"items": [_ITEM | {"explain": _EXPLANATION}], "duplicates_left_out": 1},
    "while_an_edit_waits": _RELATED | {"stale": True},
    "without_the_store": _RELATED | {"items": [{"note_id": "kyoto-5", "score": 0.8312}], "degraded": True},
    "rules": _RULES,
    "seeds": {"positives": ["kyoto-3", "osaka-1"], "negatives": ["soup-1"], "text": {"title": "Gardens in autumn"}},
    "search": {"q": "quiet gardens", "min_score": 0.3},
    "batch": {"requests": [{"note_id": "kyoto-3", "k": 5}, {"positives": ["soup-1"], "category": ["Food"]}]},
    "list": _LIST,
    "answers": {
        "answers": [
            {"status": 200, **_RELATED},
            {
                "status": 404,
                "error": {
                    "code": "note_not_found",
                    "message": "positives[0]: there is no note of this id",
                    "request_id": "9c1f60ab7e52d384",
                },
            },
        ]
    },
    "suggestions": {
        "answer_id": "5d0c6a94c1b7e821.t.1f3a9c52",
        "hashtags": [
            {"tag": "ramen", "score": 0.71, "source": "generated"},
            {"tag": "osaka", "score": 0.58, "source": "both"},
            {"tag": "travel", "score": 0.33, "source": "neighbors"},
        ],
        "category": {"name": "Travel", "score": 0.93},
        "duplicate_of": None,
        "related": [_ITEM],
        "model": _FINGERPRINT,
    },
    "text": {"input": "A quiet bakery by the sea", "model": "notellm"},
    "texts": {"input": ["A quiet bakery by the sea", "海边的面包店"], "encoding_format": "base64"},
    "embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.48, 0.64]}],
        "model": _FINGERPRINT,
        "usage": {"prompt_tokens": 31, "total_tokens": 31},
    },
    "pending": _WRITTEN | {"status": "pending"},
    "searchable": _WRITTEN | {"status": "searchable"},
    "stored_note": _STORED,
    "listed": {"items": [_STORED], "next": "kyoto-3"},
    "written": {
        "accepted": 1,
        "rejected": [{"position": 1, "code": "invalid_request", "message": "title and content are both empty"}],
    },
    "delivered": {
        "accepted": 2,
        "duplicates": 1,
        "rejected": [{"position": 3, "code": "invalid_request", "message": "user_id: Field required"}],
    },
    "vocabulary": {
        "items": [
            {
                "tag": "kyoto",
                "notes": 214,
                "spellings": [{"spelling": "kyoto", "notes": 180}, {"spelling": "Kyoto", "notes": 34}],
            },
            {"tag": "streetfood", "notes": 97, "spellings": [{"spelling": "street_food", "notes": 97}]},
        ],
        "next": "97:streetfood",
    },
    "trending": {"items": [{"tag": "cherryblossom", "notes": 41, "lift": 6.571429}]},
    "hashtag_rules": {"items": [{"tag": "kyototrip", "alias_of": "kyoto"}, {"tag": "followme", "blocked": True}]},
    "alias": {"alias_of": "kyoto"},
    "block": {"blocked": True},
    "rule": {"tag": "kyototrip", "alias_of": "kyoto"},
    "outcomes": {
        "sources": [
            {
                "scenario": "related",
                "model": "1f3a9c52",
                "arm": "",
                "shown": 48210,
                "clicked": 2119,
                "rate": 0.043954,
                "low": 0.041206,
                "high": 0.046702,
            }
        ],
        "positions": [{"position": 1, "shown": 9120, "clicked": 711, "rate": 0.077961, "low": 0.071, "high": 0.0849}],
    },
    "experiments": {"items": [_EXPERIMENT]},
    "experiment": _EXPERIMENT
    | {
        "report": {
            "made": "2026-05-18T03:30:12Z",
            "until": "2026-05-18T03:30:04Z",
            "finding": "better",
            "verdict": "B is better: it gets 2.1% to 14.3% more clicks an item than A.",
            "arms": [
                {
                    "name": "A",
                    "readers": 5012,
                    "answers": 48120,
                    "shown": 402310,
                    "clicked": 17702,
                    "ctr": {"value": 0.044001, "low": 0.042912, "high": 0.04509},
                    "suggested": 0,
                    "accepted": 0,
                    "acceptance": None,
                    "slow_s": 0.0412,
                },
                {
                    "name": "B",
                    "readers": 4987,
                    "answers": 48377,
                    "shown": 404120,
                    "clicked": 19195,
                    "ctr": {"value": 0.047498, "low": 0.0463, "high": 0.048696},
                    "suggested": 0,
                    "accepted": 0,
                    "acceptance": None,
                    "slow_s": 0.0398,
                },
            ],
            "clicks": {"value": 0.0795, "low": 0.021, "high": 0.143, "p_value": 0.0021},
            "hashtags": None,
            "split": {"p_value": 0.8, "holds": True},
            "guards": [
                {"name": "failed", "first": 0.0, "second": 0.0, "low": None, "high": None, "says": ""},
                {"name": "empty", "first": 0.0012, "second": 0.0011, "low": -0.0009, "high": 0.0007, "says": ""},
                {"name": "seconds", "first": 0.0121, "second": 0.0119, "low": -0.04, "high": 0.01, "says": ""},
                {"name": "notes", "first": 18230.0, "second": 19011.0, "low": None, "high": None, "says": ""},
            ],
            "days": [
                {
                    "day": "2026-05-17",
                    "first": {"value": 0.0443, "low": 0.0421, "high": 0.0465},
                    "second": {"value": 0.0478, "low": 0.0455, "high": 0.0501},
                }
            ],
            "impressions": True,
        }
    },
    "learning": {
        "turns": [
            {
                "name": "turn-0002",
                "begun": "2026-05-04T03:30:00Z",
                "told": "2026-05-04T04:12:31Z",
                "serving": "0a9b8c7d6e5f4a3b",
                "model": _FINGERPRINT,
                "outcome": None,
                "why": "",
                "steps": [
                    {
                        "name": "gate",
                        "about": "the new model against the serving one, on the newest notes",
                        "state": "done",
                        "at": "2026-05-04T04:12:30Z",
                        "took_s": 48.2,
                        "says": "passed",
                    },
                    {
                        "name": "index",
                        "about": "the new model's index lacks nothing",
                        "state": "waits",
                        "at": None,
                        "took_s": None,
                        "says": f"a worker of the new model, {_FINGERPRINT}: "
                        "NOTELLM_CHECKPOINT=turns/candidate notellm worker",
                    },
                ],
                "gate": [
                    {
                        "name": "Recall@100",
                        "serving": 0.2805,
                        "new": 0.3203,
                        "change": 0.0398,
                        "low": 0.0037,
                        "high": 0.0781,
                        "of": "1,180 pairs (also of single readers)",
                        "says": "better",
                    }
                ],
                "experiment": None,
                "hashtags": {"new": 12, "share": 0.031, "most": ["cherryblossom2026"]},
                "categories": {"new": 0, "share": 0.0, "most": []},
            }
        ]
    },
    "figures": {
        "notes": {"live": 1632, "searchable": 1630, "pending": 2, "failed": 0},
        "queue": {"depth": 2, "oldest_s": 0.412},
        "index": {
            "generation": 12,
            "shards_ok": 1,
            "shards_total": 1,
            "shards": [
                {
                    "shard": 0,
                    "notes": 1630,
                    "generation": 12,
                    "recipe": "flat",
                    "fingerprint": _FINGERPRINT,
                    "cursor": "1773604870412-0",
                    "recall": 1.0,
                    "delta": 0,
                }
            ],
        },
        "model": _FINGERPRINT,
        "freshness_s": {"p50": 0.18, "p99": 0.74},
        "reach": {"coverage": 0.62, "gini": 0.71, "hubs": 38, "hub_share": 0.19},
        "watch": {
            "model": _FINGERPRINT,
            "before": "0a9b8c7d6e5f4a3b",
            "state": "kept",
            "since": "2026-05-04T09:30:00Z",
            "ended": "2026-05-05T09:30:00Z",
            "reason": None,
            "detail": None,
            "blocked": None,
        },
        "warnings": [],
    },
}
