-- Begins every script that writes. KEYS[1]: meta. ARGV[1]: the incarnation that the caller knows, or nothing; a blank; the
-- format of records that it can keep; a blank; the name of the row about the pepper that it knows, or nothing.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'peppers')
local known, keeps, row = string.match(ARGV[1], '^(%S*) (%d+) (%S*)$')
local is_ours = known and meta[1] and meta[2] == '1' and tonumber(meta[3]) and (known == '' or known == meta[1])
local format = tonumber(meta[4]) or 1

-- The answer: the state of the store, the outcome, then what was asked for.
local function answer(status, ...)
  return {meta[1], meta[2], meta[3], meta[4], status, ...}
end

if not is_ours then return answer('refused') end
if format > tonumber(keeps) then return answer('outdated') end
