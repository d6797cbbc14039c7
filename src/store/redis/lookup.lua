#!lua flags=no-writes
-- The key that a digest opens, its organisation and the state of the store, all of one moment.
-- KEYS: meta, the digest's
-- pointer. ARGV: the prefix of every name.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
local owner = redis.call('GET', KEYS[2])
if owner then
  -- The names of both records are known only now. They have our hash tag, so a cluster keeps them on this node.
  answer[5] = owner
  answer[6] = redis.call('GET', ARGV[1] .. 'id:' .. string.sub(owner, 31))
  answer[7] = redis.call('GET', ARGV[1] .. 'org:' .. string.sub(owner, 1, 30))
end
return answer
