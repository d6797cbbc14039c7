#!lua flags=no-writes
-- Records of an index, newest first, each as id and record.
-- KEYS: meta, the index; for the index of an environment also the list of all keys, of live and of test keys. ARGV: the prefix of the records, the
-- start, the number.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
-- An older gateway makes keys without an entry for their environment.
if KEYS[3] and redis.call('ZCARD', KEYS[3]) ~= redis.call('ZCARD', KEYS[4]) + redis.call('ZCARD', KEYS[5]) then
  answer[5] = 'unindexed'
  return answer
end
local ids = redis.call('ZRANGE', KEYS[2], ARGV[2], '-', 'BYLEX', 'REV', 'LIMIT', 0, ARGV[3])
for n = 1, #ids do
  answer[2 * n + 3] = ids[n]
  answer[2 * n + 4] = redis.call('GET', ARGV[1] .. ids[n])
end
return answer
