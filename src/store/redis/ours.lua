-- Stands before every script that writes. KEYS[1]: meta. ARGV[1]: the incarnation that the caller knows, or nothing.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')
local is_ours = meta[1] and meta[2] == '1' and tonumber(meta[3]) and (ARGV[1] == '' or ARGV[1] == meta[1])

-- The state of the store, then what came of it, then whatever was asked for.
local function answer(status, ...)
  return {meta[1], meta[2], meta[3], status, ...}
end

if not is_ours then return answer('refused') end
