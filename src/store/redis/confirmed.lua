#!lua flags=no-writes
-- How far an event has come: the number of gateways that have applied it; then the number of those with a lease that have
-- not, and their names; then the same of those whose lease has lapsed while they may let keys in.
-- KEYS: meta, gateways, all that may let keys in. ARGV: the event's number; the prefix of every lease.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local confirmed, awaited, lapsed = 0, {}, {}
local function judge(last, gateway, others)
  if tonumber(last) >= tonumber(ARGV[1]) then
    confirmed = confirmed + 1
  else
    others[#others + 1] = gateway
  end
end
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local last = redis.call('GET', ARGV[2] .. gateway)
  if last then judge(last, gateway, awaited) end
end
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local lease = ARGV[2] .. gateway
  local serves = redis.call('EXISTS', lease) == 0 and redis.call('GET', lease .. ':serves')
  if serves then judge(string.match(serves, '^%d+'), gateway, lapsed) end
end
local answer = {meta[1], meta[2], meta[3], meta[4], confirmed}
for _, list in ipairs({awaited, lapsed}) do
  answer[#answer + 1] = #list
  for _, gateway in ipairs(list) do answer[#answer + 1] = gateway end
end
return answer
