"""Events that name an answer, counted day by day as they come, for a look at any time; reports are made of exports.

Each is counted twice over: under the source that the answer's id tells (`answers.source_of_answer`), and for lists
under its position. Readers fall into `GROUPS` groups by their ids, all events of one into the same: how much the groups
differ says how far a rate can be trusted although a reader's events are not independent (the method of random groups:
Wolter, "Introduction to Variance Estimation", 2007, chapter 2).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from model.evaluation.online.ratio import Rate, rate
from service.store.attribution.answers import AnswerSource, source_of_answer
from service.store.records import Event
from service.store.schema import OUTCOMES

GROUPS = 20
LAST = 11  # positions from here on count as one
KEPT_DAYS = 15
# Ids are forged easily: what is counted a day is bounded.
_MOST_FIELDS = 20_000
_ANSWER = re.compile(r"[0-9a-fA-F]{16}\.[rst]\..*", re.DOTALL)

# Counts an event that was not seen before: the fields are those of `fields_of`.
ATTRIBUTED = f"""
local function attributed(event)
  local kind = event.type == 'impression' and 'shown'
    or (event.type == 'click' or event.type == 'like' or event.type == 'save') and 'clicked'
  if not kind or not event.answer_id or not string.match(string.sub(event.answer_id, 1, 16), '^%x+$') then return end
  local source = string.match(string.sub(event.answer_id, 17), '^%.([rst]%..*)$')
  if not source then return end
  local day = '{OUTCOMES}' .. math.floor(tonumber(redis.call('TIME')[1]) / 86400)
  if redis.call('HLEN', day) > {_MOST_FIELDS} then return end
  local rest = ' ' .. tonumber(string.sub(redis.sha1hex(event.user_id), 1, 6), 16) % {GROUPS} .. ' ' .. kind
  redis.call('HINCRBY', day, source .. rest, 1)
  if event.position and string.sub(source, 1, 1) ~= 't' then
    redis.call('HINCRBY', day, string.format('%d', math.min(event.position, {LAST})) .. rest, 1)
  end
  redis.call('EXPIRE', day, {KEPT_DAYS * 86_400})
end
"""


def fields_of(event: Event) -> Iterator[str]:
    """The counters of an event: a source or a position, the group of its reader, and what it says of the item."""
    kind = {"impression": "shown", "click": "clicked", "like": "clicked", "save": "clicked"}.get(event.type)
    if kind is None or not _ANSWER.fullmatch(event.answer_id or ""):
        return
    source = (event.answer_id or "").partition(".")[2]
    group = int(hashlib.sha1(event.user_id.encode(), usedforsecurity=False).hexdigest()[:6], 16) % GROUPS
    yield f"{source} {group} {kind}"
    if event.position and source[0] != "t":
        yield f"{min(event.position, LAST)} {group} {kind}"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Rates of clicks by the source of the answers, and of lists by position, 11 being all from there on."""

    sources: dict[AnswerSource, Rate]
    positions: dict[int, Rate]


def outcomes_of(days: Iterable[Mapping[str, int]]) -> Outcomes:
    """The counters of several days as rates; ``readers`` of each are the groups that any of its events is of."""
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for day in days:
        for name, count in day.items():
            key, group, kind = name.rsplit(" ", 2)
            counts[key][group][kind == "clicked"] += count
    rates = {key: found for key, groups in sorted(counts.items()) if (found := _rate(groups.values()))}
    return Outcomes(
        {source: found for key, found in rates.items() if (source := source_of_answer(f".{key}"))},
        {int(key): rates[key] for key in sorted(filter(str.isdecimal, rates), key=int)},
    )


def _rate(groups: Iterable[list[int]]) -> Rate | None:
    """Clicks can be more than impressions where a client sends none: then there is no rate."""
    pairs = list(groups)
    shown, clicked = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if clicked > shown or not shown:
        return None
    squares = (sum(c * c for _, c in pairs), sum(c * n for n, c in pairs), sum(n * n for n, _ in pairs))
    return rate(shown, clicked, len(pairs), *squares)
