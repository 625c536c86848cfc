"""The scripts of notes: to store, to delete, to list them."""

from collections.abc import Sequence

from service.store.idempotency import OUTCOME
from service.store.interfaces import Conflict, Refusal, TooManyNames
from service.store.jobs import PUBLISH_PREDICTION
from service.store.schema import LUA

# Whether the note (a record or nil) is at the version that the caller expects.
_EXPECTED = """
local function at_expected(note, expected)
  if expected == '' then return true end
  if not note or deleted(note) then return expected == 'none' end
  return expected == 'any' or expected == string.format('%.0f', version(note))
end
"""

# Stores a record, its version not yet known and unpacked in ``stored``, over the old one (or nil) if it says something
# else. Where the text is the same, the predictions for the old one are of this one from now on; for models without one,
# but for ``predicted``, jobs are queued. Returns the version; or name, known and given type of an attribute that is of
# another type in a live note; or only the name of one that would be one too many: see `refusal`.
PUT_NOTE = (
    PUBLISH_PREDICTION
    + """
local function written(record)  -- what a client wrote: the language that was detected stands at the end
  local text = body(record)
  for length = 0, 3 do
    if string.sub(text, -10 - length, -1 - length) == '\\168detected' .. string.char(160 + length) then
      return string.sub(text, 1, -11 - length)
    end
  end
  return text
end
local function vector_of(prediction)  -- cmsgpack knows no bytes
  local _, last = string.find(prediction, '\\166vector', 31, true)
  local kind = string.byte(prediction, last + 1)
  local format = kind == 0xc4 and '>I1' or kind == 0xc5 and '>I2' or '>I4'
  local size, start = struct.unpack(format, prediction, last + 2)
  return string.sub(prediction, start, start + size - 1)
end
local function same_hashtags(one, other)
  if #one.hashtags ~= #other.hashtags then return false end
  for place, tag in ipairs(one.hashtags) do
    if tag ~= other.hashtags[place] then return false end
  end
  return true
end
local function same_text(one, other)
  return one.title == other.title and one.content == other.content and same_hashtags(one, other)
end
local function same_counts(one, other)
  return one.hidden == other.hidden and one.created_at == other.created_at and same_hashtags(one, other)
end
local function prediction_of(model, id, number)
  local failed = redis.call('HGET', FAILED .. model, id)
  if failed and version(failed) == number then return nil end
  local known = redis.call('HGET', READINGS .. model, id)
  return known and version(known) == number and known or nil
end
local function conflict(stored)
  for name, value in pairs(stored.attributes or {}) do
    local given = type_of(value)
    for _, known in ipairs({'string', 'number', 'boolean', 'list'}) do
      if known ~= given and redis.call('HEXISTS', ATTRIBUTES, known .. ':' .. name) == 1 then
        return {name, known, given}
      end
    end
  end
end
local function one_too_many(stored, before)
  local given, had = stored.attributes or {}, before and before.attributes or {}
  local names, new = redis.call('HLEN', ATTRIBUTES), nil
  for name, value in pairs(given) do
    if had[name] == nil and redis.call('HEXISTS', ATTRIBUTES, type_of(value) .. ':' .. name) == 0 then
      names = names + 1
      if not new or name < new then new = name end
    end
  end
  for name, value in pairs(had) do  -- those that only this note had
    if given[name] == nil and redis.call('HGET', ATTRIBUTES, type_of(value) .. ':' .. name) == '1' then
      names = names - 1
    end
  end
  return new and names > MOST_ATTRIBUTE_NAMES and {new} or nil
end
local function put_note(record, stored, old, models, predicted, traceparent)
  local id, number = stored.id, old and version(old) or 0
  if old and written(old) == written(record) then return number end
  local before = old and not deleted(old) and cmsgpack.unpack(old)
  local refusal = conflict(stored) or one_too_many(stored, before)
  if refusal then return refusal end
  redis.call('SET', NOTE .. id, with_version(record, number + 1))
  if before then
    count_attributes(before, -1)
  else
    enter(stored)
    if old then redis.call('HINCRBY', COUNTS, 'deleted', -1) end
  end
  count_attributes(stored, 1)
  if not before then
    count_tags(stored, 1)
  elseif not same_counts(before, stored) then
    count_tags(stored, 1, count_tags(before, -1))  -- an edit makes a note no newer
  end
  local now = redis.call('TIME')
  local written_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
  local same = before and same_text(before, stored)
  for _, model in ipairs(models) do
    local known = same and model ~= predicted and prediction_of(model, id, number)
    redis.call('HDEL', FAILED .. model, id)
    if known then
      publish(model, id, number + 1, stored, with_version(known, number + 1), vector_of(known), written_ms)
    elseif model ~= predicted then
      queue(model, id, number + 1, traceparent)
    end
  end
  wrote(id)
  return number + 1
end
"""
)

# ARGV: those of `OUTCOME`, most jobs that may wait, the version expected of the (then only) note, the traceparent of
# the write, then one record a note, its version not yet known. Nil when too many would wait, 0 when the note is not as
# expected; else what `PUT_NOTE` returns for each. Before the first model is registered, every live note waits. A model
# that is not active may never have a worker again, so its jobs must not fill the memory: where there are more than for
# every note, they are dropped, and its next worker queues anew.
PUT = (
    LUA
    + OUTCOME
    + _EXPECTED
    + PUT_NOTE
    + """
local models, active = redis.call('HKEYS', MODELS), redis.call('GET', ACTIVE)
local most, notes = tonumber(ARGV[1]), tonumber(redis.call('HGET', COUNTS, 'live') or 0)
local waiting = active and redis.call('XLEN', JOBS .. active) or notes
local stored, jobs, times = {}, 0, {}
for i = 4, #ARGV do
  stored[i] = cmsgpack.unpack(ARGV[i])
  times[stored[i].id] = (times[stored[i].id] or 0) + 1
end
if waiting + #ARGV - 3 > most then  -- then it counts which need a job
  for i = 4, #ARGV do
    local id = stored[i].id
    local old = redis.call('GET', NOTE .. id)
    local known = times[id] == 1 and old and not deleted(old) and (written(old) == written(ARGV[i])
      or active and same_text(cmsgpack.unpack(old), stored[i]) and prediction_of(active, id, version(old)))
    if not known then jobs = jobs + 1 end
  end
  if waiting + jobs > most and jobs > 0 then return nil end
end
for _, model in ipairs(models) do
  if model ~= active and redis.call('XLEN', JOBS .. model) > notes + most then
    redis.call('UNLINK', JOBS .. model)
    redis.call('SREM', FILLED, model)
  end
end
local versions = {}
for i = 4, #ARGV do
  local old = redis.call('GET', NOTE .. stored[i].id)
  if not at_expected(old, ARGV[2]) then return 0 end
  versions[i - 3] = put_note(ARGV[i], stored[i], old, models, nil, ARGV[3])
end
settle()
return remember(versions)
"""
)

# ARGV: those of `OUTCOME`, the id, its tombstone, version not yet known, the version expected. 0 when the id was never
# seen, -1 when the note is not as expected.
DELETE = (
    LUA
    + OUTCOME
    + _EXPECTED
    + """
local id = ARGV[1]
local old = redis.call('GET', NOTE .. id)
if not old then return 0 end
if not at_expected(old, ARGV[3]) then return -1 end
if deleted(old) then return remember(1) end
local number = version(old) + 1
redis.call('SET', NOTE .. id, with_version(ARGV[2], number))
for _, model in ipairs(redis.call('HKEYS', MODELS)) do
  redis.call('HDEL', READINGS .. model, id)
  redis.call('HDEL', FAILED .. model, id)
end
redis.call('HDEL', EXPOSURE, id)
redis.call('ZREM', EXPOSED, id)
local stored = cmsgpack.unpack(old)
count_attributes(stored, -1)
count_tags(stored, -1)
leave(stored)
redis.call('HINCRBY', COUNTS, 'deleted', 1)
wrote(id)
redis.call('XADD', EMBEDDINGS, '*', 'id', id, 'version', string.format('%.0f', number),
  'fingerprint', redis.call('GET', ACTIVE) or '')
return remember(1)
"""
)

# ARGV: ids. Lists those of live notes and no others; 1 when the list is whole.
LISTED = (
    LUA
    + """
for _, id in ipairs(ARGV) do
  local note = redis.call('GET', NOTE .. id)
  if note and not deleted(note) then redis.call('ZADD', IDS, 0, id) else redis.call('ZREM', IDS, id) end
end
return is_listed() and 1 or 0
"""
)

# ARGV: where to begin, in the words of ZRANGEBYLEX, and how many ids at most. Ids and, but for the last id of a full
# answer, which only tells that there is more, records and counts of `EXPOSURE`. Nil while the list is not whole.
PAGE = (
    LUA
    + """
if not is_listed() then return nil end
local most = tonumber(ARGV[2])
local ids, records, counts = redis.call('ZRANGEBYLEX', IDS, ARGV[1], '+', 'LIMIT', 0, most), {}, {}
for place = 1, math.min(#ids, most - 1) do
  records[place] = redis.call('GET', NOTE .. ids[place])
  counts[place] = redis.call('HGET', EXPOSURE, ids[place])
end
return {ids, records, counts}
"""
)


def refusal(parts: Sequence[bytes]) -> Refusal:
    """What `PUT_NOTE` returned in place of a version."""
    words = [part.decode() for part in parts]
    return Conflict(*words) if len(words) > 1 else TooManyNames(*words)
