-- Entries of an audit trail, newest first, as id, MAC and text in turn.
-- KEYS: meta, the trail's entries. ARGV: where to begin, how many.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')
local answer = {meta[1], meta[2], meta[3]}
for n, entry in ipairs(redis.call('XREVRANGE', KEYS[2], ARGV[1], '-', 'COUNT', ARGV[2])) do
  answer[3 * n + 1] = entry[1]
  answer[3 * n + 2] = field(entry, 'mac') or false
  answer[3 * n + 3] = field(entry, 'text') or false
end
return answer
