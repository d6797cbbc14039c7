-- One mutation: every check comes before the first write, so all of it happens or nothing does.
--
-- KEYS: meta, events, keys, orgs,
--       the record of the organisation to change, the record of the key, the record of the key's organisation,
--       the list of that organisation's keys (meta in the place of each that is not concerned),
--       the digests to have, the digests to give up.
-- ARGV: 1 the incarnation it was decided on, or nothing; 2 the last event known, 3 its mark, or nothing;
--       4 the organisation as expected: `-` not concerned, `+` not there, else the 8 bytes of its revision; 5 its bytes; 6 its id;
--       7 to 9 the same of the key; 10 what its digests point to; 11 how many digests to have;
--       12 the subjects of the event, or nothing; 13 its mark; 14 how many events are kept.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event')

local function end_with(status, event, written)
  return {meta[1], meta[2], meta[3], status, event or false, written or false}
end

-- Whether a record is what its writer took it to be.
local function differs(expected, name)
  if expected == '-' then return nil end
  local now = redis.call('GET', name)
  if expected == '+' then return now and 'exists' end
  if not now then return 'missing' end
  return string.sub(now, 3, 10) ~= expected and 'conflict'
end

local function mark_of(number)
  local entry = redis.call('XRANGE', KEYS[2], number .. '-0', number .. '-0')[1]
  if entry then
    for n = 1, #entry[2], 2 do
      if entry[2][n] == 'mark' then return entry[2][n + 1] end
    end
  end
  return nil
end

local event = tonumber(meta[3])
if not meta[1] or meta[2] ~= '1' or not event or (ARGV[1] ~= '' and ARGV[1] ~= meta[1]) then
  return end_with('refused')
end
-- A store that lacks an event its writer knows has lost what came last: the writer must find that out first.
if event < tonumber(ARGV[2]) or (ARGV[3] ~= '' and mark_of(ARGV[2]) ~= ARGV[3]) then
  return end_with('refused')
end

local refusal = differs(ARGV[4], KEYS[5]) or differs(ARGV[7], KEYS[6])
if refusal then return end_with(refusal) end
if ARGV[7] == '+' then
  local comes_along = ARGV[4] == '+' and KEYS[5] == KEYS[7]
  if not comes_along and not redis.call('GET', KEYS[7]) then return end_with('missing') end
end
local first, wanted = 9, tonumber(ARGV[11])
for n = first, first + wanted - 1 do
  local owner = redis.call('GET', KEYS[n])
  if owner and owner ~= ARGV[10] then return end_with('exists') end
end
-- What is of another type fails here, before anything is written.
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[4])
if ARGV[7] ~= '-' then redis.call('ZCARD', KEYS[8]) end

local number, written = nil, ''
if ARGV[12] ~= '' then
  -- For measurements alone: a user who may not ask for the time changes keys all the same.
  local time = redis.pcall('TIME')
  if not time.err then written = string.format('%d%06d', time[1], time[2]) end
  -- The first write, because the stream may refuse the number.
  number = string.format('%.0f', event + 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[14], number .. '-0', 'subjects', ARGV[12], 'mark', ARGV[13],
    'written', written)
  redis.call('HSET', KEYS[1], 'event', number)
end
if ARGV[4] ~= '-' then
  redis.call('SET', KEYS[5], ARGV[5])
  redis.call('ZADD', KEYS[4], 0, ARGV[6])
end
if ARGV[7] ~= '-' then
  redis.call('SET', KEYS[6], ARGV[8])
  redis.call('ZADD', KEYS[3], 0, ARGV[9])
  redis.call('ZADD', KEYS[8], 0, ARGV[9])
  for n = first, first + wanted - 1 do
    redis.call('SET', KEYS[n], ARGV[10])
  end
  for n = first + wanted, #KEYS do
    -- It may be another key's by now.
    if redis.call('GET', KEYS[n]) == ARGV[10] then redis.call('DEL', KEYS[n]) end
  end
end
return end_with('done', number, written)
