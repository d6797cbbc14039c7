-- Replaces the prefixes of the store.
-- KEYS: meta, then those of the parts. ARGV: what `ours.lua` needs; the text that must be there, or nothing; the new one;
-- then the parts, which are at most a format.
local parts = read_parts(2, 4)
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end
if (redis.call('HGET', KEYS[1], 'prefixes') or '') ~= ARGV[2] then return answer('done', 'another') end
raise_format(parts.format[1])
redis.call('HSET', KEYS[1], 'prefixes', ARGV[3])
return answer('done', 'rewritten')
