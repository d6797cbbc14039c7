-- Appends entries to an audit trail. Existing entries are left as they are.
-- KEYS: meta, the trail's entries, its ends.
-- ARGV: what `ours.lua` needs; both ends; then number, MAC and text of each entry.
local before = redis.call('GET', KEYS[3])
if before and before ~= ARGV[2] then return answer('another') end
local last = math.max(last_number(KEYS[2]), (struct.unpack('>I8', ARGV[2])))
local head = struct.unpack('>I8', ARGV[2], 41)
local fresh = {}
for n = 3, #ARGV, 3 do
  local number, id = tonumber(ARGV[n]), ARGV[n] .. '-0'
  if number > last and number <= head then
    last = number
    table.insert(fresh, n)
  else
    local there = redis.call('XRANGE', KEYS[2], id, id)[1]
    if #fresh > 0 or field(there, 'mac') ~= ARGV[n + 1] or field(there, 'text') ~= ARGV[n + 2] then
      return answer('gap', ARGV[n])
    end
  end
end
redis.call('SET', KEYS[3], ARGV[2])
for _, n in ipairs(fresh) do
  redis.call('XADD', KEYS[2], ARGV[n] .. '-0', 'mac', ARGV[n + 1], 'text', ARGV[n + 2])
end
return answer('done')
