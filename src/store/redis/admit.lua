-- Counts one more under every quota, or under none if any is used up.
-- KEYS: meta, then a counter for each quota: when its
-- window ends, and how many there were. ARGV: what `ours.lua` needs; the present time; then limit and window of each quota.
-- Times are milliseconds of the caller's clock; the clock of Redis only removes old counters.
local now, wait, windows = tonumber(ARGV[2]), nil, {}
for n = 2, #KEYS do
  local limit, length = tonumber(ARGV[2 * n - 1]), tonumber(ARGV[2 * n])
  local ends_at, count = string.match(redis.call('GET', KEYS[n]) or '', '^(%d+) (%d+)$')
  ends_at, count = tonumber(ends_at), tonumber(count)
  if not ends_at or ends_at <= now then
    ends_at, count = now + length, 0
  end
  -- Never longer than a window, even if a clock was set back.
  local left = math.min(ends_at - now, length)
  if count >= limit then wait = math.max(wait or 0, left) end
  windows[n] = {ends_at = ends_at, count = count, left = left}
end
if wait then return answer('used up', string.format('%.0f', wait)) end
for n = 2, #KEYS do
  local window = windows[n]
  local value = string.format('%.0f %d', window.ends_at, window.count + 1)
  redis.call('SET', KEYS[n], value, 'PX', string.format('%.0f', math.max(window.left, 1)))
end
return answer('done')
