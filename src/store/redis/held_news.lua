#!lua flags=no-writes
-- How many news are held, and the organisations of some of them.
-- KEYS: meta, the held news. ARGV: the start, the number.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local held = redis.call('ZRANGE', KEYS[2], ARGV[1], '+', 'BYLEX', 'LIMIT', 0, ARGV[2])
return {meta[1], meta[2], meta[3], meta[4], redis.call('ZCARD', KEYS[2]), unpack(held)}
