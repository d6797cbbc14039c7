#!lua flags=no-writes
-- What one node has of a lookup while our slot is on its way to another. Names nothing as KEYS: a node that lacks one of them would
-- refuse the whole. What the node lacks counts as not there; that the other lacks it too is for the caller to see.
-- ARGV: meta, the digest's pointer, what the name of every key begins with, where the pointer leads if the other node has said so.
local function here(...)
  local found = redis.pcall(...)
  if type(found) ~= 'table' or not found.err then return found end
  -- Where the node would send us on. Anything else that goes wrong is no sign of a key that has left.
  if string.find(found.err, 'non local key', 1, true) then return false end
  error(found)
end

local meta = here('HMGET', ARGV[1], 'incarnation', 'schema', 'event', 'format') or {false, false, false, false}
local answer = {meta[1], meta[2], meta[3], meta[4]}
local owner = here('GET', ARGV[2]) or ARGV[4]
if owner ~= '' then
  answer[5] = owner
  answer[6] = here('GET', ARGV[3] .. 'id:' .. string.sub(owner, 31))
  answer[7] = here('GET', ARGV[3] .. 'org:' .. string.sub(owner, 1, 30))
end
return answer
