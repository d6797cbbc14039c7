#!lua
-- Accepts the store, as it is now, in place of the one that a gateway knows.
-- KEYS: meta, events. ARGV: the known
-- incarnation, or nothing; incarnation and format of a new store, if there is none; the format that the gateway can keep;
-- what the new store says of its pepper; that records older than gateways remember count, with the moment and a proof, and
-- `1` if this holds for the known store, too.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'replaces')
if meta[1] and (meta[2] ~= '1' or (tonumber(meta[4]) or 1) > tonumber(ARGV[4])) then
  return {meta[1], meta[2], meta[3], meta[4], 'refused'}
end
if meta[1] and (ARGV[7] == '1' or (ARGV[1] ~= '' and ARGV[1] ~= meta[1])) then
  redis.call('HSET', KEYS[1], 'older', ARGV[6])
end
if not meta[1] then
  -- Old events would block new ones that have the same numbers.
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'incarnation', ARGV[2], 'schema', '1', 'event', '0', 'format', ARGV[3],
    'replaces', ARGV[1], 'peppers', ARGV[5], 'older', ARGV[6])
  return {ARGV[2], '1', '0', ARGV[3], 'begun'}
end
if ARGV[1] == '' or ARGV[1] == meta[1] then
  return {meta[1], meta[2], meta[3], meta[4], 'kept'}
end
local replaces = meta[5] or ''
if not string.find(replaces, ARGV[1], 1, true) then
  redis.call('HSET', KEYS[1], 'replaces', replaces .. ' ' .. ARGV[1])
end
return {meta[1], meta[2], meta[3], meta[4], 'accepted'}
