-- The number of the last entry that a stream ever had.
local function last_number(stream)
  if redis.call('EXISTS', stream) == 0 then return 0 end
  local info = redis.call('XINFO', 'STREAM', stream)
  for n = 1, #info, 2 do
    if info[n] == 'last-generated-id' then return tonumber(string.match(info[n + 1], '^%d+')) end
  end
end

-- A field of an entry, if that is there.
local function field(entry, name)
  local fields = entry and entry[2] or {}
  for n = 1, #fields, 2 do
    if fields[n] == name then return fields[n + 1] end
  end
  return nil
end
