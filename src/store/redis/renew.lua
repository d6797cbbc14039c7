-- A gateway's heartbeat: it renews its lease, with the number of the last event that holds there, and looks at the store: its
-- state, whom it replaces, the mark of an event, if that is still there, and the time in microseconds, if the user may ask for it.
-- KEYS: meta, events, gateways, the gateway's own lease. ARGV: the event's number; the gateway; for how long, in milliseconds;
-- what the name of every lease begins with.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'replaces')
local id = ARGV[1] .. '-0'
local mark = field(redis.call('XRANGE', KEYS[2], id, id)[1], 'mark')
local time = redis.pcall('TIME')
local now = not time.err and string.format('%d%06d', time[1], time[2])
-- Where there is no store, nothing is made.
if meta[1] then
  redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[3])
  redis.call('SADD', KEYS[3], ARGV[2])
  for _, other in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    -- Their names are known only now; they share the hash tag, so a cluster has them here too.
    if redis.call('EXISTS', ARGV[4] .. other) == 0 then redis.call('SREM', KEYS[3], other) end
  end
end
return {meta[1], meta[2], meta[3], meta[4], mark or false, now}
