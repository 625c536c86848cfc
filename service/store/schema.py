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
``notellm:v1:events``               stream of events: one msgpack map an entry, an `Event`
``notellm:v1:event:<id>``           exists as long as another event of this id counts as a duplicate
``notellm:v1:answer:<digest>``      msgpack list: what is known of a write with an idempotency key, `idempotency`
``notellm:v1:ids``                  sorted set of the ids of live notes, all of score 0: in byte order
``notellm:v1:attributes``           hash: ``<type>:<name>`` of an attribute -> number of live notes that carry it
``notellm:v1:tag:<key>``            sorted set: spelling of a hashtag -> number of live notes with this spelling, the
                                    hidden ones not counted
``notellm:v1:counts``               hash: live, deleted
``notellm:v1:cursors``              hash: ``<indexer>/<model>`` -> cursor of the oldest snapshot that the indexer
                                    may fall back to, and the time of its last word
``notellm:v1:restoring``            exists until a restore is finished: the digest of its backup
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
ANSWER = "notellm:v1:answer:"
IDS = "notellm:v1:ids"
ATTRIBUTES = "notellm:v1:attributes"
TAG = "notellm:v1:tag:"
COUNTS = "notellm:v1:counts"
CURSORS = "notellm:v1:cursors"
RESTORING = "notellm:v1:restoring"
WORKERS = "workers"
# A cache that is further behind starts empty, so a short stream is enough.
WRITES_KEPT = 10_000

# A write into half a store would give versions twice. This error of a script becomes StoreUnavailable.
UNLESS_RESTORING = f"""
if redis.call('EXISTS', '{RESTORING}') == 1 then return redis.error_reply('READONLY a restore is not finished') end
"""

# The keys above, and the header of records as `service.store.records` encodes it.
LIBRARY = f"""
local NOTE, MODELS, ACTIVE, FILLED = '{NOTE}', '{MODELS}', '{ACTIVE}', '{FILLED}'
local READINGS, FAILED, JOBS, WORKERS = '{READINGS}', '{FAILED}', '{JOBS}', '{WORKERS}'
local EMBEDDINGS, DEAD, CURSORS = '{EMBEDDINGS}', '{DEAD}', '{CURSORS}'
local IDS, ATTRIBUTES, TAG, COUNTS = '{IDS}', '{ATTRIBUTES}', '{TAG}', '{COUNTS}'
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
local function count(stored, step)  -- what a live note carries
  for key, spelling in pairs(not stored.hidden and stored.tags or {{}}) do
    local notes = tonumber(redis.call('ZINCRBY', TAG .. key, step, spelling))
    if notes <= 0 then redis.call('ZREM', TAG .. key, spelling) end
  end
  for name, value in pairs(stored.attributes or {{}}) do
    local field = type_of(value) .. ':' .. name
    if redis.call('HINCRBY', ATTRIBUTES, field, step) <= 0 then redis.call('HDEL', ATTRIBUTES, field) end
  end
end
"""

# Every script of a running service begins with this.
LUA = UNLESS_RESTORING + LIBRARY
