-- Removes the oldest entries of an audit trail, and keeps the last one's link as the checkpoint; or tells how many may go.
-- Age is judged by the clock of Redis, only where that of the gateway agrees with it, and a trail gives up a share in a day: a
-- gateway with a wrong clock, or a wrong retention, does little harm.
-- KEYS: meta, the trail's entries, its ends, until when its day lasts and how many entries may still go.
-- ARGV: what `ours.lua` needs; the gateway's time; how far both clocks may be apart; the least and the parts of a trail that
-- may go in a day, and the day; the retention; the number of the last entry to remove, which must exist, or nothing; the most
-- to remove; `at once`, if an operator wants everything removed that is old. Times are in milliseconds.
local time = redis.pcall('TIME')
if time.err then return answer('unread') end
local now, own = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2])
if math.abs(own - now) > tonumber(ARGV[3]) then return answer('apart', string.format('%.0f', own - now)) end

local day = tonumber(ARGV[6])
local ends_at, left = string.match(redis.call('GET', KEYS[4]) or '', '^(%d+) (%d+)$')
ends_at, left = tonumber(ends_at), tonumber(left)
-- A day that ends later than this began when the clock of Redis was wrong.
if not ends_at or ends_at <= now or ends_at > now + day then
  ends_at, left = now + day, math.max(tonumber(ARGV[4]), math.floor(redis.call('XLEN', KEYS[2]) / tonumber(ARGV[5])))
end
if ARGV[8] == '' then return answer('done', string.format('%.0f', now), string.format('%.0f', left)) end

local through, most = ARGV[8] .. '-0', tonumber(ARGV[9])
local is_daily = ARGV[10] ~= 'at once'
if is_daily then most = math.min(most, left) end
if most < 1 or not redis.call('XRANGE', KEYS[2], through, through)[1] then return answer('done', '0') end
local last, count = nil, 0
for n, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', through, 'COUNT', most)) do
  -- The first such field of a record is its own: what others chose comes behind it.
  local at = tonumber(string.match(field(entry, 'text') or '', '"at":(%d+)'))
  if at and at + tonumber(ARGV[7]) > now then break end
  if at then last, count = entry, n end
end
if not last then return answer('done', '0') end
local number, mac = string.match(last[1], '^%d+'), field(last, 'mac')
local ends = redis.call('GET', KEYS[3]) or string.rep('\0', 80)
if not mac or #mac ~= 32 or #ends ~= 80 then
  return redis.error_reply('ERR an audit trail does not read')
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', number .. '-1')
redis.call('SET', KEYS[3], struct.pack('>I8', tonumber(number)) .. mac .. string.sub(ends, 41))
if is_daily then
  redis.call('SET', KEYS[4], string.format('%.0f %.0f', ends_at, left - count), 'PX', string.format('%.0f', ends_at - now))
end
return answer('done', tostring(count))
