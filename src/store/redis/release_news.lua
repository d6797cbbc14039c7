-- Held news are due, with a body and a proof that were made now.
-- KEYS: meta, news, when they are due, their proofs, the held ones. ARGV: what `ours.lua` needs; the organisation, the body, the
-- proof or nothing, the time.
redis.call('ZCARD', KEYS[3])
if redis.call('ZREM', KEYS[5], ARGV[2]) == 1 then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  if ARGV[4] ~= '' then redis.call('HSET', KEYS[4], ARGV[2], ARGV[4]) end
  redis.call('ZADD', KEYS[3], ARGV[5], ARGV[2])
end
return answer('done')
