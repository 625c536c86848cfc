"""The schema of Redis: the name of every key, and the Lua functions that scripts share.

==================================  ==========================================================================
key                                 holds
==================================  ==========================================================================
``notellm:v1:note:<id>``            msgpack map: a `StoredNote` (a tombstone keeps id, version and deleted)
``notellm:v1:models``               hash: fingerprint of every registered model -> dimension of its vectors
``notellm:v1:active``               fingerprint of the registered model that answers
``notellm:v1:filled``               set: models for which every live note was queued
``notellm:v1:readings:<model>``     hash: id -> msgpack map: a `StoredPrediction`
``notellm:v1:failed:<model>``       hash: id -> msgpack map: version and reason of a note that was dead-lettered
``notellm:v1:jobs:<model>``         stream of `EmbedJob`, consumer group ``workers``; finished ones are deleted
``notellm:v1:embeddings``           stream of changes for the indexes, of all models, replayable from any cursor
``notellm:v1:dead``                 stream of dead-lettered jobs, with the reason
``notellm:v1:writes``               stream of the ids that were written or deleted, for caches; cut to its end
``notellm:v1:events``               stream of events: one msgpack map an entry, an `Event`; or ``erased``: the
                                    `digest_of` a reader whose earlier events are gone
``notellm:v1:seen:<user>``          sorted set: id of a note that the reader has seen -> when, in seconds since 1970
``notellm:v1:erasing:<digest>``     how far the events were looked through for a reader who is being erased; expires
``notellm:v1:event:<id>``           exists as long as another event of this id counts as a duplicate
``notellm:v1:answer:<digest>``      msgpack list: what is known of a write with an idempotency key, `idempotency`
``notellm:v1:served``               stream of what was answered: a batch of `ServedAnswer` an entry; cut at its start
``notellm:v1:servedcounts``         hash: answers in ``served``, erasures of readers from it
``notellm:v1:listed:<day>:<m>``     hash: id -> in how many lists of the day the note stood, of one in m notes; expires
``notellm:v1:outcomes:<day>``       hash: events of the day that name an answer, see `attribution.outcomes`; expires
``notellm:v1:answered:<time>``      hash: answers of ten seconds by model, see `attribution.quality`; expires
``notellm:v1:forgotten``            hash: name of an erased reader -> when; expires. Of them nothing older is logged
``notellm:v1:readerkey``            the key under which logs and files name readers, see `attribution.readers`
``notellm:v1:exposure``             hash: id -> how often events say that the note was shown, see `attribution.exposure`
``notellm:v1:exposed``              sorted set: id -> what its count gained since indexes heard of it
``notellm:v1:ids``                  sorted set of the ids of live notes, all of score 0: in byte order
``notellm:v1:attributes``           hash: ``<type>:<name>`` of an attribute -> number of live notes that carry it
``notellm:v1:tag:<key>``            sorted set: spelling of a hashtag -> number of live notes with this spelling, the
                                    hidden ones not counted
``notellm:v1:tags``                 sorted set: key of a hashtag -> minus the number of live notes that carry it
``notellm:v1:tagnames``             sorted set: the same keys, by their letters, for prefixes
``notellm:v1:newtags:<day>``        sorted set: key of a hashtag -> live notes of this day that carry it; "" -> all of
                                    the day's notes; expires
``notellm:v1:newnotes``             sorted set: id -> day of the notes that ``newtags`` counts
``notellm:v1:tagrules``             hash: key of a hashtag -> its rule, see `hashtags.rules`; "" -> number of changes
``notellm:v1:experiments``          hash: name -> JSON, an `Experiment`; "" -> number of changes
``notellm:v1:findings``             hash: kind and name -> JSON, what gateways show of experiments and turns of
                                    learning, see `experiments.findings`; "" -> number of changes
``notellm:v1:webhook``              hash: how far the webhook was told, see `webhook.notices`
``notellm:v1:webhookholder``        the gateway that tells it; expires
``notellm:v1:watch``                hash: the last `Watch` over a model that was activated
``notellm:v1:guardian``             the gateway that judges by it; expires
``notellm:v1:completed``            set: what was filled in for notes and events of older releases
``notellm:v1:counts``               hash: live, deleted
``notellm:v1:cursors``              hash: ``<indexer>/<model>`` -> cursor of the oldest snapshot that the indexer
                                    may fall back to, and the time of its last word
``notellm:v1:restoring``            exists until a restore is finished: the digest of its backup
``notellm:v1:cells``                number of cells of the store, in the first one; missing where it is one
``notellm:v1:types``                hash: name of an attribute -> its type in all cells, see `cells.attributes`
``notellm:v1:format``               number of the format of all this, see `STORE_FORMAT`; missing where it is 1
``notellm:v1:fence``                empty: written behind a write that replicas have to have, see `cluster.replicas`
==================================  ==========================================================================

A model's records stand in three keys of its own, so that it is retired in one step.
"""

NOTE = "notellm:v1:note:"
MODELS = "notellm:v1:models"
ACTIVE = "notellm:v1:active"
FILLED = "notellm:v1:filled"
READINGS = "notellm:v1:readings:"
FAILED = "notellm:v1:failed:"
JOBS = "notellm:v1:jobs:"
EMBEDDINGS = "notellm:v1:embeddings"
DEAD = "notellm:v1:dead"
WRITES = "notellm:v1:writes"
EVENTS = "notellm:v1:events"
EVENT = "notellm:v1:event:"
SEEN = "notellm:v1:seen:"
ERASING = "notellm:v1:erasing:"
ANSWER = "notellm:v1:answer:"
SERVED = "notellm:v1:served"
SERVED_COUNTS = "notellm:v1:servedcounts"
LISTED = "notellm:v1:listed:"
OUTCOMES = "notellm:v1:outcomes:"
ANSWERED = "notellm:v1:answered:"
FORGOTTEN = "notellm:v1:forgotten"
EXPOSURE = "notellm:v1:exposure"
EXPOSED = "notellm:v1:exposed"
READER_KEY = "notellm:v1:readerkey"
IDS = "notellm:v1:ids"
ATTRIBUTES = "notellm:v1:attributes"
TAG = "notellm:v1:tag:"
TAGS = "notellm:v1:tags"
TAG_NAMES = "notellm:v1:tagnames"
NEW_TAGS = "notellm:v1:newtags:"
NEW_NOTES = "notellm:v1:newnotes"
RULES = "notellm:v1:tagrules"
EXPERIMENTS = "notellm:v1:experiments"
FINDINGS = "notellm:v1:findings"
WEBHOOK = "notellm:v1:webhook"
WEBHOOK_HOLDER = "notellm:v1:webhookholder"
WATCH = "notellm:v1:watch"
GUARDIAN = "notellm:v1:guardian"
COMPLETED = "notellm:v1:completed"
COUNTS = "notellm:v1:counts"
CURSORS = "notellm:v1:cursors"
RESTORING = "notellm:v1:restoring"
FORMAT = "notellm:v1:format"
FENCE = "notellm:v1:fence"
CELLS = "notellm:v1:cells"
TYPES = "notellm:v1:types"
# Of keys and records. A release that writes what those before would misread gives the store a higher one first; they
# then refuse it. What they pass over or read as missing, as every change so far, needs none.
STORE_FORMAT = 1
WORKERS = "workers"
# A cache that is further behind starts empty, so a short stream is enough.
WRITES_KEPT = 10_000
# Names of attributes in all live notes together: each costs every shard up to 1 kB.
MOST_ATTRIBUTE_NAMES = 10_000
# Longer than any period of trending hashtags.
NEW_DAYS = 91

# A write into half a store would give versions twice. This error of a script becomes StoreUnavailable.
UNLESS_RESTORING = f"""
if redis.call('EXISTS', '{RESTORING}') == 1 then return redis.error_reply('READONLY a restore is not finished') end
"""

# The keys above, and the header of records as `service.store.records` encodes it.
LIBRARY = f"""
local NOTE, MODELS, ACTIVE, FILLED = '{NOTE}', '{MODELS}', '{ACTIVE}', '{FILLED}'
local READINGS, FAILED, JOBS, WORKERS = '{READINGS}', '{FAILED}', '{JOBS}', '{WORKERS}'
local EMBEDDINGS, DEAD, CURSORS = '{EMBEDDINGS}', '{DEAD}', '{CURSORS}'
local IDS, ATTRIBUTES, COUNTS = '{IDS}', '{ATTRIBUTES}', '{COUNTS}'
local MOST_ATTRIBUTE_NAMES = {MOST_ATTRIBUTE_NAMES}
local EXPOSURE, EXPOSED = '{EXPOSURE}', '{EXPOSED}'
local TAG, TAGS, TAG_NAMES = '{TAG}', '{TAGS}', '{TAG_NAMES}'
local NEW_TAGS, NEW_NOTES = '{NEW_TAGS}', '{NEW_NOTES}'
local function wrote(id) redis.call('XADD', '{WRITES}', 'MAXLEN', '~', {WRITES_KEPT}, '*', 'id', id) end
local function version(record) return (struct.unpack('>I8', record, 11)) end
local function deleted(note) return string.byte(note, 27) == 0xc3 end
local function body(note) return string.sub(note, 19) end
local function with_version(note, number)
  return string.sub(note, 1, 10) .. struct.pack('>I8', number) .. body(note)
end
local function live(note, number) return note and not deleted(note) and version(note) == number end
local function registered(model) return redis.call('HEXISTS', MODELS, model) == 1 end
local function queue(model, id, number, traceparent)
  local job = {{'id', id, 'version', string.format('%.0f', number)}}
  if traceparent and traceparent ~= '' then
    job[5], job[6] = 'traceparent', traceparent
  end
  redis.call('XADD', JOBS .. model, '*', unpack(job))
end
local function type_of(attribute) return type(attribute) == 'table' and 'list' or type(attribute) end
local function enter(stored)  -- a live note
  redis.call('ZADD', IDS, 0, stored.id)
  redis.call('HINCRBY', COUNTS, 'live', 1)
end
local function leave(stored)
  redis.call('ZREM', IDS, stored.id)
  redis.call('HINCRBY', COUNTS, 'live', -1)
end
local function is_listed()
  return redis.call('ZCARD', IDS) == tonumber(redis.call('HGET', COUNTS, 'live') or 0)
end
local function add(key, member, step)
  local count = tonumber(redis.call('ZINCRBY', key, step, member))
  if count <= 0 then redis.call('ZREM', key, member) end
end
-- The place of a hashtag among all, from its spellings.
local function rank_tag(tag)
  local counts, notes = redis.call('ZRANGE', TAG .. tag, 0, -1, 'WITHSCORES'), 0
  for i = 2, #counts, 2 do notes = notes + tonumber(counts[i]) end
  if notes == 0 then
    redis.call('ZREM', TAGS, tag)
    redis.call('ZREM', TAG_NAMES, tag)
  else
    redis.call('ZADD', TAGS, -notes, tag)
    redis.call('ZADD', TAG_NAMES, 0, tag)
  end
end
-- What `count_tags` adds, by key and member, until `settle`: notes of one script share most of their hashtags.
local counted, ranked, days = {{}}, {{}}, {{}}
local function add_later(key, member)
  local members = counted[key] or {{}}
  counted[key], members[member] = members, (members[member] or 0) + 1
end
local function move_tag(tag, step)
  local notes = tonumber(redis.call('ZSCORE', TAGS, tag) or 0)
  if notes < -1 then redis.call('ZINCRBY', TAGS, -step, tag) else rank_tag(tag) end
end
local function expire_day(day) redis.call('EXPIREAT', NEW_TAGS .. day, (day + {NEW_DAYS}) * 86400) end
-- Every script that counts hashtags of stored notes ends with this.
local function settle()
  for key, members in pairs(counted) do
    for member, step in pairs(members) do add(key, member, step) end
  end
  for tag, step in pairs(ranked) do move_tag(tag, step) end
  for day in pairs(days) do expire_day(day) end
  counted, ranked, days = {{}}, {{}}, {{}}
end
local function today() return math.floor(tonumber(redis.call('TIME')[1]) / 86400) end
-- The date of an RFC 3339 time, as it is written there, in days since 1970.
local function day_of(time)
  local year, month, day = string.match(time, '^(%d%d%d%d)-(%d%d)-(%d%d)')
  year, month = tonumber(year), tonumber(month)
  if month <= 2 then year, month = year - 1, month + 12 end
  local leap_days = math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
  return 365 * year + leap_days + math.floor((153 * month - 457) / 5) + day - 719469
end
-- Adds a note to its day, or takes it from there, unless it is older than `newtags`.
local function count_day(note, day, now, step)
  if step < 0 then
    redis.call('ZREM', NEW_NOTES, note.id)
    add(NEW_TAGS .. day, '', step)
    for tag in pairs(note.tags or {{}}) do add(NEW_TAGS .. day, tag, step) end
    return expire_day(day)
  end
  if day <= now - {NEW_DAYS} then return end
  redis.call('ZADD', NEW_NOTES, day, note.id)
  redis.call('ZREMRANGEBYSCORE', NEW_NOTES, '-inf', now - {NEW_DAYS})
  add_later(NEW_TAGS .. day, '')
  for tag in pairs(note.tags or {{}}) do add_later(NEW_TAGS .. day, tag) end
  days[day] = true
end
-- Counts a note's hashtags (1), or no longer (-1), unless it is hidden. A note without created_at is of `day`, today
-- without one. What is added is written by `settle`. Returns the day that it was counted for, 0 for one long ago, nil
-- if it was not.
local function count_tags(note, step, day)
  if note.hidden then return nil end
  if step < 0 then settle() end  -- a note that this script counted may be the one that it no longer counts
  for tag, spelling in pairs(note.tags or {{}}) do
    if step < 0 then
      add(TAG .. tag, spelling, step)
      move_tag(tag, step)
    else
      add_later(TAG .. tag, spelling)
      ranked[tag] = (ranked[tag] or 0) + 1
    end
  end
  local now = today()
  if step < 0 then
    day = tonumber(redis.call('ZSCORE', NEW_NOTES, note.id) or 0)
  else
    day = note.created_at and math.min(day_of(note.created_at), now) or day or now
  end
  if day > 0 then count_day(note, day, now, step) end
  return day
end
local function count_attributes(note, step)
  for name, value in pairs(note.attributes or {{}}) do
    local field = type_of(value) .. ':' .. name
    if redis.call('HINCRBY', ATTRIBUTES, field, step) <= 0 then redis.call('HDEL', ATTRIBUTES, field) end
  end
end
"""

# Every script of a running service begins with this.
LUA = UNLESS_RESTORING + LIBRARY
