#!lua flags=no-writes
-- The prefixes of the store, the number of its keys, and for each gateway that holds a lease the format and the prefixes
-- that it announces.
-- KEYS: meta, gateways, keys. ARGV: the prefix of every lease.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'prefixes')
local answer, n = {meta[1], meta[2], meta[3], meta[4], meta[5], redis.call('ZCARD', KEYS[3])}, 6
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local lease = ARGV[1] .. gateway
  if redis.call('EXISTS', lease) == 1 then
    answer[n + 1] = redis.call('GET', lease .. ':format') or '1'
    answer[n + 2] = redis.call('GET', lease .. ':prefixes') or ''
    n = n + 2
  end
end
return answer
