#!lua flags=no-writes
-- The usage of keys.
-- KEYS: meta, used. ARGV: the ids.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
return {meta[1], meta[2], meta[3], meta[4], unpack(redis.call('HMGET', KEYS[2], unpack(ARGV)))}
