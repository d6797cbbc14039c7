-- One mutation: every check comes before the first write, so all of it happens or nothing does.
--
--
-- KEYS: meta, events, then those of the parts.
-- ARGV: what `ours.lua` needs; the last event known; its mark, or nothing; then the parts.
local event = tonumber(meta[3])
local known, mark = tonumber(ARGV[2]), ARGV[3]
-- If the store lacks an event that its writer knows, it has lost its last changes, and the writer must notice that first.
local id = ARGV[2] .. '-0'
if event < known or (mark ~= '' and field(redis.call('XRANGE', KEYS[2], id, id)[1], 'mark') ~= mark) then
  return answer('refused')
end

local parts = read_parts(3, 4)
local org, key, news = parts.org[1], parts.key[1], parts.news[1]
local email, kept, audit = parts.email[1], parts.answer[1], parts.audit[1]
local stone = parts.tombstone[1]

-- The checks. Final outcomes come first: a record may have changed because the same request was carried out already.
if kept then
  local before = redis.call('GET', kept.place)
  if before and struct.unpack('>I8', before) > tonumber(kept.made_at) then return answer('answered') end
end
local email_before = parts.email_before[1]
if email and redis.call('EXISTS', email.place) == 1 then return answer('email') end
if email_before and redis.call('EXISTS', email_before.place) == 1 then return answer('email') end
local room, pace = parts.room[1], nil
if room then
  if not is_indexed(room.org_list, room.live_list, room.test_list) then return answer('unindexed') end
  local now = tonumber(room.now)
  local ends_at, count = string.match(redis.call('GET', room.pace) or '', '^(%d+) (%d+)$')
  ends_at, count = tonumber(ends_at), tonumber(count)
  if not ends_at or ends_at <= now then
    ends_at, count = now + tonumber(room.window), 0
  end
  -- Never longer than a window, even if a clock was set back.
  local left = math.min(ends_at - now, tonumber(room.window))
  if count >= tonumber(room.quota) then return answer('too fast', string.format('%.0f', left)) end
  local after = '(' .. room.now
  if redis.call('ZCOUNT', room.live, after, '+inf') >= tonumber(room.most) then return answer('full', 'organisation') end
  if redis.call('ZCOUNT', room.made, after, '+inf') >= tonumber(room.most_made) then return answer('full', 'maker') end
  pace = {string.format('%.0f %d', ends_at, count + 1), string.format('%.0f', math.max(left, 1))}
end
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end
for _, seen in ipairs(parts.seen) do
  if differs(seen.revision, seen.record) then return answer('conflict') end
end
if org then
  local refusal = differs(org.expected, org.record)
  if refusal then return answer(refusal) end
  check_list(org.list, org.expected == '+')
end
if key then
  local refusal = refuse_key(key, org and org.expected == '+' and org.record == key.org)
  if refusal then return answer(refusal) end
end
for _, part in ipairs(parts.newest) do
  local newer = find_newer(part)
  if newer then return answer('not newest', newer) end
end
if stone then
  local refusal = differs(stone.expected, stone.record)
  if refusal then return answer(refusal) end
  check_list(stone.list, false)
  if stone.live ~= '' then check_list(stone.live, false) end
end
local ends = nil
if audit then
  ends = redis.call('GET', audit.ends) or string.rep('\0', 80)
  if string.sub(ends, 41) ~= audit.after then return answer('conflict') end
  if last_number(audit.entries) >= tonumber(audit.number) then
    return redis.error_reply('ERR an audit trail goes on past its end')
  end
end
if news then
  redis.call('HLEN', news.bodies)
  redis.call('HLEN', news.proofs)
  check_list(news.due, true)
end

-- The writes. The event comes first, because it can still fail: the stream may refuse the number.
local number, written = nil, ''
for _, part in ipairs(parts.event) do
  -- The time is only for measurements: without the right to ask for it, changes work too.
  local time = redis.pcall('TIME')
  if not time.err then written = string.format('%d%06d', time[1], time[2]) end
  number = string.format('%.0f', event + 1)
  local fields = {'subjects', part.subjects, 'mark', part.mark, 'written', written}
  if part.proof ~= '' then
    fields[7], fields[8] = 'proof', part.proof
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', part.kept, number .. '-0', unpack(fields))
  redis.call('HSET', KEYS[1], 'event', number)
end
raise_format(parts.format[1])
if org then
  redis.call('SET', org.record, org.bytes)
  on_list(org.expected == '+', 'ZADD', org.list, 0, org.id)
end
if pace then
  redis.call('SET', room.pace, pace[1], 'PX', pace[2])
  -- Only what has ended by the clock of Redis, too, so that a gateway whose clock is wrong removes no key that goes on.
  local time = redis.pcall('TIME')
  if not time.err then
    local ended = string.format('%.0f', math.min(room.now, time[1] * 1000))
    -- Not all at once: a million imported keys may have ended together. More than one, so that they become fewer.
    for _, list in ipairs({room.live, room.made}) do
      local gone = redis.call('ZRANGE', list, '-inf', ended, 'BYSCORE', 'LIMIT', 0, 256)
      if gone[1] then redis.call('ZREM', list, unpack(gone)) end
    end
  end
end
if key then write_key(key) end
if stone then
  redis.call('SET', stone.record, stone.bytes)
  on_list(false, 'ZADD', stone.list, 0, stone.id)
  if stone.live ~= '' then on_list(false, 'ZREM', stone.live, stone.id) end
end
if email then redis.call('SET', email.place, email.org) end
if kept then redis.call('SET', kept.place, kept.bytes, 'PX', kept.lifetime) end
if audit then
  redis.call('XADD', audit.entries, audit.number .. '-0', 'mac', string.sub(audit.head, 9), 'text', audit.text)
  redis.call('SET', audit.ends, string.sub(ends, 1, 40) .. audit.head)
end
if news then
  redis.call('HSET', news.bodies, news.org, news.body)
  if news.proof == '' then
    redis.call('HDEL', news.proofs, news.org)
  else
    redis.call('HSET', news.proofs, news.org, news.proof)
  end
  redis.call('ZADD', news.due, news.due_at, news.org)
end
return answer('done', number or false, written)
