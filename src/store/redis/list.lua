#!lua flags=no-writes
-- Some records of an index, newest first, as id and record in turn.
-- KEYS: meta, the index. ARGV: what the names of the records begin with, where to begin, how many.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
local ids = redis.call('ZRANGE', KEYS[2], ARGV[2], '-', 'BYLEX', 'REV', 'LIMIT', 0, ARGV[3])
for n = 1, #ids do
  answer[2 * n + 3] = ids[n]
  answer[2 * n + 4] = redis.call('GET', ARGV[1] .. ids[n])
end
return answer
