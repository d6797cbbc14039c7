#!lua flags=no-writes
-- The part of a lookup that one node has while our slot moves to another. It has no
-- KEYS: a node that lacks one of them
-- would refuse the whole script. A key that the node lacks counts as missing; the caller asks the other node too. ARGV:
-- meta; the pointers of the digests; the prefix of every name; the content of a pointer, if the other node has told it.
local function here(...)
  local found = redis.pcall(...)
  if type(found) ~= 'table' or not found.err then return found end
  -- The node would redirect us. Any other error is no sign of a key that has moved.
  if string.find(found.err, 'non local key', 1, true) then return false end
  error(found)
end

local meta = here('HMGET', ARGV[1], 'incarnation', 'schema', 'event', 'format', 'peppers')
  or {false, false, false, false, false}
local answer = {meta[1], meta[2], meta[3], meta[4], meta[5]}
local prefix, owner = ARGV[#ARGV - 1], ARGV[#ARGV]
for n = 2, #ARGV - 2 do
  local found = here('GET', ARGV[n])
  if found then
    owner = found
    break
  end
end
if owner ~= '' then
  answer[6] = owner
  answer[7] = here('GET', prefix .. 'id:' .. string.sub(owner, 31))
  answer[8] = here('GET', prefix .. 'org:' .. string.sub(owner, 1, 30))
end
return answer
