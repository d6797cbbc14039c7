-- Begins to remove a prefix: a new secret with it ends the removal.
-- KEYS: meta. ARGV: what `ours.lua` needs; the prefix.
redis.call('HSET', KEYS[1], 'removing', ARGV[2])
return answer('done')
