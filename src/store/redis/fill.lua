-- Fills a store that is being restored. Repeating it changes nothing.
-- KEYS: meta. ARGV: the name of the restore; then parts, each with its name: `value`, a name, the bytes; `member`, a sorted set,
-- the score, the member; `field`, a hash, the field, the bytes; `stone`, its grave, the stone, the length of its name; `entry`, a
-- stream, the number, MAC, text.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'restoring')
if meta[2] ~= 'restoring' or meta[5] ~= ARGV[1] then return {meta[1], meta[2], meta[3], meta[4], 'refused'} end
local last, n = {}, 2
while n <= #ARGV do
  local part, name, one, other, text = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3], ARGV[n + 4]
  if part == 'value' then
    redis.call('SET', name, one)
    n = n + 3
  elseif part == 'member' then
    redis.call('ZADD', name, one, other)
    n = n + 4
  elseif part == 'field' then
    redis.call('HSET', name, one, other)
    n = n + 4
  elseif part == 'stone' then
    put_stone(name, one, other)
    n = n + 4
  else
    last[name] = last[name] or last_number(name)
    if tonumber(one) > last[name] then
      redis.call('XADD', name, one .. '-0', 'mac', other, 'text', text)
      last[name] = tonumber(one)
    end
    n = n + 5
  end
end
return {meta[1], meta[2], meta[3], meta[4], 'done'}
