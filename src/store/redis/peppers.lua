-- Writes down what the store says of its pepper.
-- KEYS: meta, gateways. ARGV: what `ours.lua` needs; what the caller knows that the store says, or nothing; what it is to
-- say; the check value that every gateway with a lease must announce, or nothing; the format of the store then; the prefix
-- of every lease.
local now = meta[5] or ''
if now ~= ARGV[2] then return answer('peppers', now) end
if ARGV[4] ~= '' then
  for _, gateway in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    local lease = ARGV[6] .. gateway
    local has = redis.call('GET', lease .. ':peppers') or ''
    if redis.call('GET', lease) and not string.find(has, ARGV[4], 1, true) then return answer('waits', gateway) end
  end
  if tonumber(ARGV[5]) > format then redis.call('HSET', KEYS[1], 'format', ARGV[5]) end
end
redis.call('HSET', KEYS[1], 'peppers', ARGV[3])
return answer('done')
