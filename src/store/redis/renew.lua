#!lua flags=allow-oom
-- Renews a gateway's lease, with the number of its last applied event. It writes nothing else, so that a proxy's user has
-- the right to run it.
-- KEYS: gateways, the gateway's own lease, the format, the prefixes and the peppers that it announces. ARGV: the gateway; the
-- event's number; the duration, in milliseconds; the prefix of every lease; the format; the prefixes; the check values of the
-- peppers. Answers the number of leases. What a gateway announces has keys of its own, because older gateways read a lease as
-- one number.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[3])
redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[3])
redis.call('SET', KEYS[5], ARGV[7], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local leases = 0
for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- Their names are known only now. They have our hash tag, so a cluster keeps them on this node.
  if redis.call('EXISTS', ARGV[4] .. other) == 1 then
    leases = leases + 1
  else
    redis.call('SREM', KEYS[1], other)
  end
end
return {false, false, false, false, leases}
