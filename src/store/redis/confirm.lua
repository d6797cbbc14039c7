-- A gateway says how far it has come. A lease that has ended stays ended.
-- KEYS: meta, the gateway's lease. ARGV: the incarnation; the number of the last event that holds there.
local before = redis.call('GET', KEYS[2])
if before and tonumber(before) < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[2], 'KEEPTTL')
end
return answer('done')
