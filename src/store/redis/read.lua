#!lua flags=no-writes
-- Records by their names.
-- KEYS: meta, then the records.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
local answer = {meta[1], meta[2], meta[3], meta[4]}
for n = 2, #KEYS do
  answer[n + 3] = redis.call('GET', KEYS[n])
end
return answer
