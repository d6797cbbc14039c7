#!lua flags=allow-oom
-- A gateway confirms an event in its lease. A lease that has ended stays ended. If the store lost events and gave the
-- number to another event, the mark differs and nothing is confirmed.
-- KEYS: the gateway's lease, what it may do without one. ARGV: the number of its
-- last applied event; the mark of that event; the name of the stream. The stream is no KEY: Redis demands the right to
-- write to every KEY of a script that writes, and a proxy lacks it there.
local before = redis.call('GET', KEYS[1])
if before and tonumber(before) < tonumber(ARGV[1]) then
  local id = ARGV[1] .. '-0'
  local entry = redis.call('XRANGE', ARGV[3], id, id)[1]
  local fields = entry and entry[2] or {}
  for n = 1, #fields, 2 do
    if fields[n] == 'mark' and fields[n + 1] == ARGV[2] then
      redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
      local serves = redis.call('GET', KEYS[2])
      if serves then redis.call('SET', KEYS[2], ARGV[1] .. string.match(serves, ' .*'), 'KEEPTTL') end
    end
  end
end
return {false, false, false, false}
