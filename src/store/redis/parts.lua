-- A change consists of parts. In ARGV each part begins with its name. Its fields take the next KEYS, then the next ARGV, in
-- the order below.
local PARTS = {
  -- A record. Expected: `+` does not exist, `!` stale, else the 8 bytes of its revision.
  org = {{'record', 'list'}, {'expected', 'bytes', 'id'}},
  -- Until: when it stops being live, `inf`, or nothing for a revoked key.
  key = {{'record', 'org', 'list', 'org_list', 'of_environment', 'live', 'made'}, {'expected', 'bytes', 'id', 'owner', 'until'}},
  -- A digest that the last key gets, and one that it gives up.
  digest = {{'pointer'}, {}},
  dropped = {{'pointer'}, {}},
  -- A record that must be as it was, by its revision.
  seen = {{'record'}, {'revision'}},
  -- The place of an address, and a second one that must be free, too.
  email = {{'place'}, {'org'}},
  email_before = {{'place'}, {}},
  -- Times in milliseconds; the bytes begin with the end, as 8 bytes.
  answer = {{'place'}, {'made_at', 'lifetime', 'bytes'}},
  -- Where the trail must end, and where it ends then: 40 bytes each.
  audit = {{'entries', 'ends'}, {'after', 'head', 'number', 'text'}},
  -- The room for a new key: the lists of live keys, how many each may have, and the quota of new keys, with its window.
  room = {{'live', 'made', 'pace', 'org_list', 'live_list', 'test_list'}, {'now', 'most', 'most_made', 'quota', 'window'}},
  news = {{'bodies', 'due'}, {'org', 'due_at', 'body'}},
  event = {{}, {'subjects', 'mark', 'kept'}},
  -- The format of the change; the prefix of every lease.
  format = {{'gateways'}, {'needed', 'leases'}},
}

-- All parts by name, from these KEYS and ARGV on. A key contains its digests.
local function read_parts(next_key, next_arg)
  local parts = {}
  for name in pairs(PARTS) do parts[name] = {} end
  local key = nil
  while next_arg <= #ARGV do
    local name, part = ARGV[next_arg], {}
    next_arg = next_arg + 1
    for _, field in ipairs(PARTS[name][1]) do
      part[field] = KEYS[next_key]
      next_key = next_key + 1
    end
    for _, field in ipairs(PARTS[name][2]) do
      part[field] = ARGV[next_arg]
      next_arg = next_arg + 1
    end
    if name == 'key' then
      part.digests, part.dropped, key = {}, {}, part
    elseif name == 'digest' then
      table.insert(key.digests, part.pointer)
    elseif name == 'dropped' then
      table.insert(key.dropped, part.pointer)
    end
    table.insert(parts[name], part)
  end
  return parts
end

-- Why a record is not as its writer expects, if so.
local function differs(expected, record)
  local now = redis.call('GET', record)
  if expected == '+' then return now and 'exists' end
  if not now then return 'missing' end
  return string.sub(now, 3, 10) ~= expected and 'conflict'
end

-- A gateway that holds a lease and cannot keep the change, with the format that it can keep; nothing if there is none.
local function find_outdated(needed)
  if not needed or tonumber(needed.needed) <= format then return nil end
  for _, gateway in ipairs(redis.call('SMEMBERS', needed.gateways)) do
    local lease = needed.leases .. gateway
    local keeps = redis.call('GET', lease .. ':format') or '1'
    if tonumber(keeps) < tonumber(needed.needed) and redis.call('GET', lease) then return gateway, keeps end
  end
end

local function raise_format(needed)
  if needed and tonumber(needed.needed) > format then redis.call('HSET', KEYS[1], 'format', needed.needed) end
end

-- Fails if this is no list. Checks once: no write of a script changes the type.
local lists = {}
local function check_list(name)
  if not lists[name] then
    redis.call('ZCARD', name)
    lists[name] = true
  end
end

-- Why a key cannot be written, if so. An entry of a wrong type fails here.
local function refuse_key(key, comes_with_its_org)
  local refusal = differs(key.expected, key.record)
  if refusal then return refusal end
  if key.expected == '+' and not comes_with_its_org and not redis.call('GET', key.org) then return 'missing' end
  for _, pointer in ipairs(key.digests) do
    local owner = redis.call('GET', pointer)
    if owner and owner ~= key.owner then return 'exists' end
  end
  check_list(key.list)
  check_list(key.org_list)
  check_list(key.of_environment)
  check_list(key.live)
  check_list(key.made)
  return nil
end

-- The entries of a key in the lists of its environment, of the live keys, and of those that its maker has made.
local function index_key(key)
  redis.call('ZADD', key.of_environment, 0, key.id)
  for _, list in ipairs({key.live, key.made}) do
    if key['until'] == '' then
      -- While a cluster moves these names to another node, a list that does not exist is an error, and nothing is in it.
      redis.pcall('ZREM', list, key.id)
    else
      redis.call('ZADD', list, key['until'], key.id)
    end
  end
end

-- Whether every key of an organisation is in those lists. An older gateway makes keys without.
local function is_indexed(all, live, test)
  return redis.call('ZCARD', all) == redis.call('ZCARD', live) + redis.call('ZCARD', test)
end

local function write_key(key)
  redis.call('SET', key.record, key.bytes)
  redis.call('ZADD', key.list, 0, key.id)
  redis.call('ZADD', key.org_list, 0, key.id)
  index_key(key)
  for _, pointer in ipairs(key.digests) do
    redis.call('SET', pointer, key.owner)
  end
  for _, pointer in ipairs(key.dropped) do
    -- It may belong to another key by now.
    if redis.call('GET', pointer) == key.owner then redis.call('DEL', pointer) end
  end
end
