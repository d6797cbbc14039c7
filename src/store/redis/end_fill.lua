#!lua
-- Makes a store of what was restored.
-- KEYS: meta. ARGV: the name of the restore; incarnation, event and format of the store; the rows about prefixes and pepper, or
-- nothing.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'restoring')
if meta[2] ~= 'restoring' or meta[5] ~= ARGV[1] then return {meta[1], meta[2], meta[3], meta[4], 'refused'} end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'prefixes', ARGV[5]) end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'peppers', ARGV[6]) end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[2], 'schema', '1', 'event', ARGV[3], 'format', ARGV[4])
redis.call('HDEL', KEYS[1], 'restoring')
return {ARGV[2], '1', ARGV[3], ARGV[4], 'done'}
