#!lua flags=no-writes
-- The state of the store; the stores that it replaces; the mark of an event, if that still exists; the time in
-- microseconds, if the user has the right to ask for it; the prefixes; what the store says of its pepper; until when
-- older records were accepted.
-- KEYS: meta, events. ARGV: the event's number.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'replaces', 'prefixes', 'peppers', 'older')
local id = ARGV[1] .. '-0'
local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
local mark = false
if entry then
  for n = 1, #entry[2], 2 do
    if entry[2][n] == 'mark' then mark = entry[2][n + 1] end
  end
end
local time = redis.pcall('TIME')
local now = not time.err and string.format('%d%06d', time[1], time[2])
return {meta[1], meta[2], meta[3], meta[4], meta[5], mark, now, meta[6], meta[7], meta[8]}
