#!lua flags=no-writes
-- How many gateways hold a lease, and at how many of them an event holds.
-- KEYS: meta, gateways. ARGV: the event's number; what the name of every lease begins with.
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
