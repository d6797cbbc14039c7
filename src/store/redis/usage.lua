#!lua flags=no-writes
-- The usage of keys. KEYS: meta, used. ARGV: the ids.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')
return {meta[1], meta[2], meta[3], unpack(redis.call('HMGET', KEYS[2], unpack(ARGV)))}
