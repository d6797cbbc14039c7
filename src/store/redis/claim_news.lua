-- News that are due, each as organisation, body and proof. Then they are not due again before a later time.
-- KEYS: meta, news, when
-- they are due, their proofs. ARGV: what `ours.lua` needs, now, the later time, how many at most.
local claimed = {}
for _, org in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[4])) do
  local body = redis.call('HGET', KEYS[2], org)
  if body then
    redis.call('ZADD', KEYS[3], ARGV[3], org)
    table.insert(claimed, org)
    table.insert(claimed, body)
    table.insert(claimed, redis.call('HGET', KEYS[4], org) or '')
  else
    redis.call('ZREM', KEYS[3], org)
  end
end
return answer('done', unpack(claimed))
