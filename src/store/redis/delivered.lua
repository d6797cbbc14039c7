-- News that were taken, or that are not to be told.
-- KEYS: meta, news, when they are due, their proofs, the held ones. ARGV: what `ours.lua` needs, the organisation.
redis.call('ZCARD', KEYS[3])
redis.call('ZREM', KEYS[5], ARGV[2])
redis.call('HDEL', KEYS[4], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
return answer('done')
