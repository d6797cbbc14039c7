-- Puts stones in the place of keys that ended long ago. As with the trimming of trails, age is judged by the clock of Redis, only
-- where that of the gateway agrees with it, and a share of all keys may go in a day.
-- KEYS: meta, the list of all keys, how many may go today, then those of the parts.
-- ARGV: what `ours.lua` needs; the gateway's time; how far both clocks may be apart; the least and the parts of all keys that may
-- go in a day, and the day; how long a key has ended before it goes; `at once`, if an operator wants all of them gone; then the
-- parts. Times are in milliseconds.
local time = redis.pcall('TIME')
if time.err then return answer('unread') end
local now, own = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2])
if math.abs(own - now) > tonumber(ARGV[3]) then return answer('apart', string.format('%.0f', own - now)) end
local parts = read_parts(4, 9)
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end

local day, is_daily = tonumber(ARGV[6]), ARGV[8] ~= 'at once'
local ends_at, left = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (%d+)$')
ends_at, left = tonumber(ends_at), tonumber(left)
-- A day that ends later than this began when the clock of Redis was wrong.
if not ends_at or ends_at <= now or ends_at > now + day then
  ends_at, left = now + day, math.max(tonumber(ARGV[4]), math.floor(redis.call('ZCARD', KEYS[2]) / tonumber(ARGV[5])))
end

local going = {}
for _, key in ipairs(parts.leaving) do
  local has_ended = tonumber(key.ended_at) + tonumber(ARGV[7]) <= now
  -- Those behind it may have been made by it.
  if not has_ended or differs(key.expected, key.record) or (is_daily and #going >= left) then break end
  table.insert(going, key)
end
if #going == 0 then return answer('done', '0') end
raise_format(parts.format[1])
for _, key in ipairs(going) do
  for _, stone in ipairs(key.stones) do
    put_stone(stone.grave, stone.stone, stone.length)
    -- It may belong to another key by now.
    if stone.pointer ~= '' and redis.call('GET', stone.pointer) == key.owner then redis.call('DEL', stone.pointer) end
  end
  for _, list in ipairs({key.list, key.org_list, key.live_list, key.test_list, key.live, key.made}) do
    redis.call('ZREM', list, key.id)
  end
  redis.call('HDEL', key.used, key.id)
  -- Last: as long as it is there, the same can be done again.
  redis.call('DEL', key.record)
end
if is_daily then
  redis.call('SET', KEYS[3], string.format('%.0f %.0f', ends_at, left - #going), 'PX', string.format('%.0f', ends_at - now))
end
return answer('done', tostring(#going))
