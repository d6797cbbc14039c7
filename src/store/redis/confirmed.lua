#!lua flags=no-writes
-- The number of gateways that hold a lease, and of those that have applied an event.
-- KEYS: meta, gateways. ARGV: the
-- event's number; the prefix of every lease.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local all, confirmed = 0, 0
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local last = redis.call('GET', ARGV[2] .. gateway)
  if last then
    all = all + 1
    if tonumber(last) >= tonumber(ARGV[1]) then confirmed = confirmed + 1 end
  end
end
return {meta[1], meta[2], meta[3], meta[4], all, confirmed}
