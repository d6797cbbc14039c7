#!lua flags=no-writes
-- The news of organisations, whether due or not, each as body and time.
-- KEYS: meta, news, when they are due. ARGV: the
-- organisations.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
for n, org in ipairs(ARGV) do
  answer[2 * n + 3] = redis.call('HGET', KEYS[2], org)
  answer[2 * n + 4] = redis.call('ZSCORE', KEYS[3], org)
end
return answer
