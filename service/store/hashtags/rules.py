"""Rules of hashtags in Redis: a hash of key to rule, and the scripts that change it.

A rule is ``"<key> <hashtag>"`` for an alias, with the hashtag as it was written, and empty for a blocked hashtag. The
field ``""`` counts the changes, so that gateways see them by one number.
"""

from model.text.hashtags import fold
from service.store.idempotency import OUTCOME
from service.store.interfaces import HashtagRule
from service.store.schema import LUA, RULES

REVISION = ""

# ARGV: those of `OUTCOME`, the key, its rule. 0 if the hashtags that it would stand for lead back to it; no others do.
PUT_RULE = (
    LUA
    + OUTCOME
    + f"""
local target = string.match(ARGV[2], '^%S+')
while target do
  if target == ARGV[1] then return 0 end
  target = string.match(redis.call('HGET', '{RULES}', target) or '', '^%S+')
end
redis.call('HSET', '{RULES}', ARGV[1], ARGV[2])
redis.call('HINCRBY', '{RULES}', '{REVISION}', 1)
return remember(1)
"""
)

# ARGV: those of `OUTCOME`, the key.
REMOVE_RULE = (
    LUA
    + OUTCOME
    + f"""
if redis.call('HDEL', '{RULES}', ARGV[1]) == 1 then redis.call('HINCRBY', '{RULES}', '{REVISION}', 1) end
return remember(1)
"""
)


def encode_rule(rule: HashtagRule) -> str:
    """The rule without the hashtag that it is for."""
    return "" if rule.alias_of is None else f"{fold(rule.alias_of)} {rule.alias_of}"


def decode_rule(tag: str, value: str) -> HashtagRule:
    """Inverse of `encode_rule`."""
    return HashtagRule(tag, value.partition(" ")[2] or None)
