-- News that are due, each as organisation, body and proof. Then they are not due again before a later time.
-- KEYS: meta, news, when
-- they are due, their proofs. ARGV: what `ours.lua` needs, now, the later time, how many at most.
local claimed = {}
local due = redis.call('ZRANGE', KEYS[3], '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[4])
if #due == 0 then
  -- Later than any that is claimed now will be due again: a wrong clock has put them there.
  local astray = string.format('(%.0f', tonumber(ARGV[3]) + 60000)
  due = redis.call('ZRANGE', KEYS[3], astray, '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[4])
end
for _, org in ipairs(due) do
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
