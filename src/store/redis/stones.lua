-- Puts stones, of which no key has the names any more. KEYS: meta, then those of the parts. ARGV: what `ours.lua` needs, then the
-- parts.
local parts = read_parts(2, 2)
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end
raise_format(parts.format[1])
for _, stone in ipairs(parts.stone) do put_stone(stone.grave, stone.stone, stone.length) end
return answer('done')
