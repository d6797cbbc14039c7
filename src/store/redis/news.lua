#!lua flags=no-writes
-- The news of organisations, whether due or not, each as body, time and proof. Held ones have a time, too.
-- KEYS: meta, news, when they are due, their proofs, the held ones. ARGV: the
-- organisations.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
for n, org in ipairs(ARGV) do
  answer[3 * n + 2] = redis.call('HGET', KEYS[2], org)
  answer[3 * n + 3] = redis.call('ZSCORE', KEYS[3], org) or redis.call('ZSCORE', KEYS[5], org)
  answer[3 * n + 4] = redis.call('HGET', KEYS[4], org)
end
return answer
