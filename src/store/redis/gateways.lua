#!lua flags=no-writes
-- The gateways that hold a lease, as name and number of the last event that holds there in turn.
-- KEYS: meta, gateways. ARGV: what the name of every lease begins with.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')
local answer, n = {meta[1], meta[2], meta[3]}, 3
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local last = redis.call('GET', ARGV[1] .. gateway)
  if last then
    answer[n + 1], answer[n + 2] = gateway, last
    n = n + 2
  end
end
return answer
