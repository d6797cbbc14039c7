-- Merges uses of keys into the stored ones, as `Usage::merge` does: the later moment, all scopes.
-- KEYS: meta, used, then
-- the record of each key. ARGV: what `ours.lua` needs, then id and usage of each key.
local function words(text)
  local found = {}
  for word in string.gmatch(text, '[^ ]+') do
    table.insert(found, word)
    found[word] = true
  end
  return found
end

-- A moment that has not come yet is of a wrong clock, and does not count.
local time = redis.pcall('TIME')
local latest = time.err and math.huge or (time[1] + 60) * 1000

local function merge(known, text)
  local merged, new = words(known), words(text)
  -- Text that cannot be read is replaced.
  local before = tonumber(merged[1])
  if not before then return text end
  if tonumber(new[1]) > before or before > latest then merged[1] = new[1] end
  for n = 2, #new do
    if not merged[new[n]] then table.insert(merged, new[n]) end
  end
  return table.concat(merged, ' ')
end

for n = 3, #KEYS do
  if redis.call('EXISTS', KEYS[n]) == 1 then
    local id, text = ARGV[2 * n - 4], ARGV[2 * n - 3]
    local known = redis.call('HGET', KEYS[2], id)
    local merged = known and merge(known, text) or text
    if merged ~= known then redis.call('HSET', KEYS[2], id, merged) end
  end
end
return answer('done')
