#!lua flags=no-writes
-- The ids in an index, newest first.
-- KEYS: meta, the index. ARGV: the start, the number.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], ARGV[1], '-', 'BYLEX', 'REV', 'LIMIT', 0, ARGV[2])) do
  table.insert(answer, id)
end
return answer
