#!lua flags=allow-oom
-- A gateway's sign of life: its lease, with the number of the last event that holds there. Names nothing else, so that a user who
-- may write nothing else can say it.
-- KEYS: gateways, the gateway's own lease, the format that it announces. ARGV: the gateway; the event's number; for how long, in
-- milliseconds; what the name of every lease begins with; the format. Answers how many gateways hold one.
-- The format has a place of its own: a gateway that knows of no formats reads a lease as one number.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local leases = 0
for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- Their names are known only now; they share the hash tag, so a cluster has them here too.
  if redis.call('EXISTS', ARGV[4] .. other) == 1 then
    leases = leases + 1
  else
    redis.call('SREM', KEYS[1], other)
  end
end
return {false, false, false, false, leases}
