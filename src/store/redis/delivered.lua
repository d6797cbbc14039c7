-- News that were taken.
-- KEYS: meta, news, when they are due. ARGV: what `ours.lua` needs, the organisation.
redis.call('ZCARD', KEYS[3])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return answer('done')
