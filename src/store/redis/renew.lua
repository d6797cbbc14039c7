#!lua flags=allow-oom
-- Renews a gateway's lease, with the number of its last applied event. It writes nothing else, so that a proxy's user has
-- the right to run it.
-- KEYS: gateways, the gateway's own lease, the format, the prefixes and the peppers that it announces; all that may let keys
-- in, what it may do without a lease. ARGV: the gateway; the event's number; the duration, in milliseconds; the prefix of
-- every lease; the format; the prefixes; the check values of the peppers; for how many milliseconds from now on it may let
-- keys in although it hears nothing more, or 0. Answers the number of leases, and of gateways whose lease has lapsed while
-- they may let keys in. What a gateway announces has keys of its own, because older gateways read a lease as one number.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[3])
redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[3])
redis.call('SET', KEYS[5], ARGV[7], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
if tonumber(ARGV[8]) > 0 then
  redis.call('SET', KEYS[7], ARGV[2] .. ' ' .. ARGV[8], 'PX', ARGV[8])
  redis.call('SADD', KEYS[6], ARGV[1])
else
  redis.call('DEL', KEYS[7])
  redis.call('SREM', KEYS[6], ARGV[1])
end
local leases, lapsed = 0, 0
for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- Their names are known only now. They have our hash tag, so a cluster keeps them on this node.
  if redis.call('EXISTS', ARGV[4] .. other) == 1 then
    leases = leases + 1
  else
    redis.call('SREM', KEYS[1], other)
  end
end
-- Not the set above: older gateways remove from it whatever has no lease.
for _, other in ipairs(redis.call('SMEMBERS', KEYS[6])) do
  local lease = ARGV[4] .. other
  if redis.call('EXISTS', lease) == 0 then
    -- A gateway that is started and killed again and again leaves one behind each time.
    if lapsed < 256 and redis.call('EXISTS', lease .. ':serves') == 1 then
      lapsed = lapsed + 1
    else
      redis.call('DEL', lease .. ':serves')
      redis.call('SREM', KEYS[6], other)
    end
  end
end
return {false, false, false, false, leases, lapsed}
