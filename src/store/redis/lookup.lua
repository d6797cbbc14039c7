#!lua flags=no-writes
-- The key that one of some digests opens, its organisation and the state of the store with its pepper, all of one moment.
-- KEYS: meta, the pointers of the digests. ARGV: the prefix of every name.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'peppers')
local answer = {meta[1], meta[2], meta[3], meta[4], meta[5]}
for n = 2, #KEYS do
  local owner = redis.call('GET', KEYS[n])
  if owner then
    -- The names of both records are known only now. They have our hash tag, so a cluster keeps them on this node.
    answer[6] = owner
    answer[7] = redis.call('GET', ARGV[1] .. 'id:' .. string.sub(owner, 31))
    answer[8] = redis.call('GET', ARGV[1] .. 'org:' .. string.sub(owner, 1, 30))
    break
  end
end
return answer
