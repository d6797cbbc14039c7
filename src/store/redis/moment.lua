-- What the whole store is like at this moment, for whoever has read all of it a moment ago: what it says of itself, how many
-- organisations and keys there are, and what the trails tell since, with the records that they tell of.
-- KEYS: meta, the list of all organisations, that of all keys. ARGV: the prefix of every name; the most entries that are told;
-- the ends of the operators' trail that are known, as 80 bytes; then texts of parts of 110 bytes each: an organisation's id, the
-- known ends of its trail.
-- The answer: the rows about prefixes and pepper, both numbers, `whole` or `busy`, then for each trail that went on `trail`, its
-- name, its ends; its new entries, each as `entry`, id, MAC, text; and the records, each as `record`, its id, its bytes.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format', 'prefixes', 'peppers')
local answer = {meta[1], meta[2], meta[3], meta[4], meta[5], meta[6],
  redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3]), 'whole'}
local prefix, left = ARGV[1], tonumber(ARGV[2])
local next_value = 10

local function tell(...)
  for _, value in ipairs({...}) do
    answer[next_value] = value
    next_value = next_value + 1
  end
end

local function tell_record(text)
  local is_json, record = pcall(cjson.decode, text)
  local target = is_json and type(record) == 'table' and record.target
  if type(target) ~= 'string' then return end
  local kind = string.sub(target, 1, 4)
  local name = kind == 'key_' and 'id:' .. target or kind == 'org_' and 'org:' .. target
  local bytes = name and redis.call('GET', prefix .. name)
  if bytes then tell('record', target, bytes) end
end

-- Whether all of it could be told.
local function look(trail, known)
  local name = prefix .. 'audit:' .. trail
  local ends = redis.call('GET', name .. ':ends') or string.rep('\0', 80)
  if string.sub(ends, 41) == string.sub(known, 41) then return true end
  tell('trail', trail, ends)
  local after = string.format('(%.0f-0', struct.unpack('>I8', known, 41))
  local entries = redis.call('XRANGE', name, after, '+', 'COUNT', left + 1)
  left = left - #entries
  if left < 0 then return false end
  for _, entry in ipairs(entries) do
    local text = field(entry, 'text') or ''
    tell('entry', entry[1], field(entry, 'mac') or '', text)
    tell_record(text)
  end
  return true
end

local told = look('operator', ARGV[3])
for n = 4, #ARGV do
  for at = 1, #ARGV[n], 110 do
    told = told and look(string.sub(ARGV[n], at, at + 29), string.sub(ARGV[n], at + 30, at + 109))
  end
end
if not told then answer[9] = 'busy' end
return answer
