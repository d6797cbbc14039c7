#!lua flags=no-writes
-- The gateways that hold a lease, each as its name, the number of its last applied event, and the format and the prefixes
-- that it announces. Then nothing; then those whose lease has lapsed while they may let keys in, each as its name, what it
-- left behind (that number, and for how many milliseconds it may do so after its last renewal), and for how many more.
-- KEYS: meta, gateways, all that may let keys in. ARGV: the prefix of every lease.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer, n = {meta[1], meta[2], meta[3], meta[4]}, 4
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local last = redis.call('GET', ARGV[1] .. gateway)
  if last then
    answer[n + 1], answer[n + 2], answer[n + 3] = gateway, last, redis.call('GET', ARGV[1] .. gateway .. ':format')
    answer[n + 4] = redis.call('GET', ARGV[1] .. gateway .. ':prefixes')
    n = n + 4
  end
end
answer[n + 1], n = false, n + 1
for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local lease = ARGV[1] .. gateway
  local serves = redis.call('EXISTS', lease) == 0 and redis.call('GET', lease .. ':serves')
  if serves then
    answer[n + 1], answer[n + 2], answer[n + 3] = gateway, serves, redis.call('PTTL', lease .. ':serves')
    n = n + 3
  end
end
return answer
