#!lua
-- Makes a store in an empty place. Existing data are left as they are.
-- KEYS: meta, and keys that every store in use has.
-- ARGV: the incarnation and the format of the new store, what it says of its pepper, and that what gateways remember of a
-- store before does not count.
local before = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
if before[1] or redis.call('EXISTS', unpack(KEYS)) > 0 then
  return {before[1], before[2], before[3], before[4], 'kept'}
end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'schema', '1', 'event', '0', 'format', ARGV[2],
  'peppers', ARGV[3], 'older', ARGV[4])
return {ARGV[1], '1', '0', ARGV[2], 'begun'}
