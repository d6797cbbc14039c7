#!lua
-- Marks an empty place as a store that is being restored. No gateway of any release takes it for a store, and no operator can
-- accept it.
-- KEYS: meta, and keys that every store in use has. ARGV: the incarnation that it will have, the name of the restore.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'restoring')
local function answer(status)
  return {meta[1], meta[2], meta[3], meta[4], status}
end
if meta[2] == 'restoring' then return answer(meta[5] == ARGV[2] and 'begun' or 'another') end
if redis.call('EXISTS', unpack(KEYS)) > 0 then return answer('occupied') end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'schema', 'restoring', 'event', '0', 'restoring', ARGV[2])
return answer('begun')
