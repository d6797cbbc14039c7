-- Replaces the prefixes of the store.
-- KEYS: meta, then those of the parts. ARGV: what `ours.lua` needs; the text that must be there, or nothing; the new one;
-- the prefix that is removed with it, or nothing; then the parts, which are at most a format.
local parts = read_parts(2, 5)
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end
if (redis.call('HGET', KEYS[1], 'prefixes') or '') ~= ARGV[2] then return answer('done', 'another') end
-- A key with that prefix has come since its removal began.
if ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'removing') ~= ARGV[4] then return answer('done', 'another') end
raise_format(parts.format[1])
redis.call('HSET', KEYS[1], 'prefixes', ARGV[3])
redis.call('HDEL', KEYS[1], 'removing')
return answer('done', 'rewritten')
