-- Entries of an audit trail, newest first, each as id, MAC and text.
-- KEYS: meta, the trail's entries. ARGV: where to begin,
-- how many.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
for n, entry in ipairs(redis.call('XREVRANGE', KEYS[2], ARGV[1], '-', 'COUNT', ARGV[2])) do
  answer[3 * n + 2] = entry[1]
  answer[3 * n + 3] = field(entry, 'mac') or false
  answer[3 * n + 4] = field(entry, 'text') or false
end
return answer
