-- A change consists of parts. In ARGV each part begins with its name. Its fields take the next KEYS, then the next ARGV, in
-- the order below.
local PARTS = {
  -- A record. Expected: `+` does not exist, `!` stale, else the 8 bytes of its revision.
  org = {{'record'}, {'expected', 'bytes', 'id', 'list'}},
  -- Until: when it stops being live, `inf`, or nothing for a revoked key. Grave and name: where a stone for its id would be, and
  -- how that would begin.
  key = {{'record', 'org'},
    {'expected', 'bytes', 'id', 'owner', 'grave', 'name', 'until', 'list', 'org_list', 'of_environment', 'live', 'made'}},
  -- A tombstone in the place of a key's record, with the 8 bytes in the place of its revision. Live: a list that the key may
  -- be in, or nothing.
  tombstone = {{'record'}, {'expected', 'bytes', 'id', 'list', 'live'}},
  -- A digest that the last key gets, and one that it gives up. Word: what its secret begins with, `*` for the first
  -- prefix of the store, or nothing for one that has ended.
  digest = {{'pointer'}, {'word', 'grave', 'name'}},
  dropped = {{'pointer'}, {}},
  -- A key that ended long ago, the lists that it may be in, and the hash with its use; then the stones for its names. Pointer: where
  -- a digest leads to it, or nothing.
  leaving = {{'record'},
    {'expected', 'ended_at', 'id', 'owner', 'list', 'org_list', 'live_list', 'test_list', 'live', 'made', 'used'}},
  stone = {{}, {'grave', 'stone', 'length', 'pointer'}},
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
  -- Proof: that the body is ours, or nothing in a store without a pepper.
  news = {{'bodies', 'due', 'proofs'}, {'org', 'due_at', 'body', 'proof'}},
  -- The new key must be the newest of its list: its id, and the one from which on none orders anything.
  newest = {{}, {'list', 'latest', 'undrawn'}},
  -- Proof: that subjects and mark are ours, or nothing in a store without a pepper.
  event = {{}, {'subjects', 'mark', 'kept', 'proof'}},
  -- The format of the change; the prefix of every lease.
  format = {{'gateways'}, {'needed', 'leases'}},
}

-- The lists are no KEYS. While a cluster moves our names to another node, it refuses a script if one of its KEYS is not
-- here, and rights must be taken away also where a list does not exist or has moved.

-- All parts by name, from these KEYS and ARGV on. A key contains its digests, and one that leaves its stones.
local function read_parts(next_key, next_arg)
  local parts = {}
  for name in pairs(PARTS) do parts[name] = {} end
  local key, leaving = nil, nil
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
    elseif name == 'leaving' then
      part.stones, leaving = {}, part
    elseif name == 'stone' and leaving then
      table.insert(leaving.stones, part)
    elseif name == 'digest' then
      table.insert(key.digests, part)
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

-- Runs a command on a list. Nothing happens if the list is not on this node and only an existing record changes: an entry
-- that is missing then, or left over, is like one that an older gateway wrote, and found in the same way. A new record
-- needs its entries.
local function on_list(is_new, command, name, ...)
  local done = redis.pcall(command, name, ...)
  local failed = type(done) == 'table' and done.err
  if failed and (is_new or not string.find(failed, 'non local key', 1, true)) then error(done) end
end

-- Fails if this is no list. Checks once: no write of a script changes the type.
local lists = {}
local function check_list(name, is_new)
  if not lists[name] then
    on_list(is_new, 'ZCARD', name)
    lists[name] = true
  end
end

-- The prefix that a word of a new secret means. Then whether the store accepts it, as far as that is known.
local function find_prefix(word)
  local list = redis.call('HGET', KEYS[1], 'prefixes')
  if not list then return word, true end
  list = string.gsub(list, '^%? ', '')
  if word == '*' then word = string.match(list, '^%-?(%w+)') or '' end
  return word, string.find(' ' .. list .. ' ', ' ' .. word .. ' ', 1, true)
end

-- Why a key cannot be written, if so. An entry of a wrong type fails here.
local function refuse_key(key, comes_with_its_org)
  local refusal = differs(key.expected, key.record)
  if refusal then return refusal end
  if key.expected == '+' and not comes_with_its_org and not redis.call('GET', key.org) then return 'missing' end
  key.is_new, key.words = key.expected == '+', {}
  if key.is_new and has_stone(key.grave, key.name) then return 'exists' end
  for _, digest in ipairs(key.digests) do
    local owner = redis.call('GET', digest.pointer)
    if owner and owner ~= key.owner then return 'exists' end
    if not owner and has_stone(digest.grave, digest.name) then return 'exists' end
    if not owner and digest.word ~= '' then
      local word, is_accepted = find_prefix(digest.word)
      if not is_accepted then return 'prefix' end
      table.insert(key.words, word)
    end
  end
  for _, list in ipairs({key.list, key.org_list, key.of_environment, key.live, key.made}) do
    check_list(list, key.is_new)
  end
  return nil
end

-- The entries of a key in the lists of its environment, of the live keys, and of those that its maker has made.
local function index_key(key)
  on_list(key.is_new, 'ZADD', key.of_environment, 0, key.id)
  for _, list in ipairs({key.live, key.made}) do
    if key['until'] == '' then
      -- The last entry takes its list along, and both may be the same list.
      on_list(false, 'ZREM', list, key.id)
    else
      on_list(key.is_new, 'ZADD', list, key['until'], key.id)
    end
  end
end

-- Whether every key of an organisation is in those lists. An older gateway makes keys without.
local function is_indexed(all, live, test)
  return redis.call('ZCARD', all) == redis.call('ZCARD', live) + redis.call('ZCARD', test)
end

-- A later id in a list than there may be, if there is one. A list on another node is not looked at.
local function find_newer(part)
  local found = redis.pcall('ZRANGE', part.list, '(' .. part.undrawn, '-', 'BYLEX', 'REV', 'LIMIT', 0, 1)
  local newest = not found.err and found[1]
  return newest and newest > part.latest and newest
end

local function write_key(key)
  redis.call('SET', key.record, key.bytes)
  on_list(key.is_new, 'ZADD', key.list, 0, key.id)
  on_list(key.is_new, 'ZADD', key.org_list, 0, key.id)
  index_key(key)
  for _, digest in ipairs(key.digests) do
    redis.call('SET', digest.pointer, key.owner)
  end
  for _, word in ipairs(key.words) do
    -- The keys with a prefix that is being removed are to be counted again.
    if redis.call('HGET', KEYS[1], 'removing') == word then redis.call('HDEL', KEYS[1], 'removing') end
  end
  for _, pointer in ipairs(key.dropped) do
    -- It may belong to another key by now.
    if redis.call('GET', pointer) == key.owner then redis.call('DEL', pointer) end
  end
end
