#!lua flags=allow-oom
-- A gateway says how far it has come. A lease that has ended stays ended.
-- KEYS: the gateway's lease. ARGV: the number of the last event that holds there.
local before = redis.call('GET', KEYS[1])
if before and tonumber(before) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
end
return {false, false, false}
