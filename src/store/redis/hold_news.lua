-- News without a proof are not due any more. They wait until an operator accepts them. Each is held only if it is still as it
-- was read.
-- KEYS: meta, news, when they are due, their proofs, the held ones. ARGV: what `ours.lua` needs; then organisation, body and
-- proof of each.
for n = 2, #ARGV, 3 do
  local org = ARGV[n]
  local proof = redis.call('HGET', KEYS[4], org) or ''
  if redis.call('HGET', KEYS[2], org) == ARGV[n + 1] and proof == ARGV[n + 2] then
    redis.call('ZADD', KEYS[5], 0, org)
    redis.call('ZREM', KEYS[3], org)
  end
end
return answer('done')
