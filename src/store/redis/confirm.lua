#!lua flags=allow-oom
-- A gateway says how far it has come. A lease that has ended stays ended. An event of this number that is another, in a store that
-- lost its last ones and went on, is not what the gateway speaks of.
-- KEYS: the gateway's lease. ARGV: the number of the last event that holds there; its mark; what the events are called: a script
-- that writes is taken to write whatever stands in KEYS, and a gateway may not be allowed to write there.
local before = redis.call('GET', KEYS[1])
if before and tonumber(before) < tonumber(ARGV[1]) then
  local id = ARGV[1] .. '-0'
  local entry = redis.call('XRANGE', ARGV[3], id, id)[1]
  local fields = entry and entry[2] or {}
  for n = 1, #fields, 2 do
    if fields[n] == 'mark' and fields[n + 1] == ARGV[2] then redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL') end
  end
end
return {false, false, false, false}
