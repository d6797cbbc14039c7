-- Replaces records by the same records under a new seal, each if it is still as it was read, and moves entries of the index of
-- e-mail addresses, each if it is still that organisation's.
-- KEYS: meta, then those of the parts. ARGV: what `ours.lua` needs, then the parts. For a record: `record`, the bytes as they
-- were, the new bytes; one key. For an address: `email`, the organisation's id; the new entry and the one before. For news:
-- `news`, the organisation's id, the proof as it was, the new one; the key of all proofs.
local moved, key, arg = 0, 2, 2
while arg <= #ARGV do
  if ARGV[arg] == 'record' then
    local record = KEYS[key]
    if redis.call('GET', record) == ARGV[arg + 1] then
      redis.call('SET', record, ARGV[arg + 2])
      moved = moved + 1
    end
    key, arg = key + 1, arg + 3
  elseif ARGV[arg] == 'news' then
    if redis.call('HGET', KEYS[key], ARGV[arg + 1]) == ARGV[arg + 2] then
      redis.call('HSET', KEYS[key], ARGV[arg + 1], ARGV[arg + 3])
      moved = moved + 1
    end
    key, arg = key + 1, arg + 4
  else
    local entry, before, org = KEYS[key], KEYS[key + 1], ARGV[arg + 1]
    if redis.call('GET', before) == org then
      redis.call('SET', entry, org)
      redis.call('DEL', before)
    end
    key, arg = key + 2, arg + 2
  end
end
return answer('done', moved)
