-- Replaces records by the same records under a new seal, each if it is still as it was read. For an organisation with an
-- e-mail address, its entry in the index of addresses moves along.
-- KEYS: meta, then for each record: the record; if it has an address, its new entry and the one before. ARGV: what `ours.lua`
-- needs, then for each record: the bytes as they were, the new bytes, the organisation's id or nothing.
local moved, at = 0, 2
for n = 2, #ARGV, 3 do
  local record, org = KEYS[at], ARGV[n + 2]
  at = at + 1
  local unchanged = redis.call('GET', record) == ARGV[n]
  if unchanged then
    redis.call('SET', record, ARGV[n + 1])
    moved = moved + 1
  end
  if org ~= '' then
    local entry, before = KEYS[at], KEYS[at + 1]
    at = at + 2
    if unchanged and redis.call('GET', before) == org then
      redis.call('SET', entry, org)
      redis.call('DEL', before)
    end
  end
end
return answer('done', moved)
