#!lua flags=no-writes
-- Records by their names. KEYS: meta, then the records.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')
local answer = {meta[1], meta[2], meta[3]}
for n = 2, #KEYS do
  answer[n + 2] = redis.call('GET', KEYS[n])
end
return answer
