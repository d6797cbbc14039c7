-- Removes the oldest entries of an audit trail, and keeps the last one's link as the checkpoint.
-- KEYS: meta, the trail's
-- entries, its ends. ARGV: what `ours.lua` needs; the number of the last entry to remove, which must exist; the most to
-- remove.
local through = ARGV[2] .. '-0'
if not redis.call('XRANGE', KEYS[2], through, through)[1] then return answer('done', '0') end
local oldest = redis.call('XRANGE', KEYS[2], '-', through, 'COUNT', ARGV[3])
local last = oldest[#oldest]
local number, mac = string.match(last[1], '^%d+'), field(last, 'mac')
local ends = redis.call('GET', KEYS[3]) or string.rep('\0', 80)
if not mac or #mac ~= 32 or #ends ~= 80 then
  return redis.error_reply('ERR an audit trail does not read')
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', number .. '-1')
redis.call('SET', KEYS[3], struct.pack('>I8', tonumber(number)) .. mac .. string.sub(ends, 41))
return answer('done', tostring(#oldest))
