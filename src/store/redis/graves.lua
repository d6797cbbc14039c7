-- Names that no key may have any more. Each begins a stone of 48 bytes, and a string has many of these, one after the other.
local STONE = 48

local function has_stone(grave, name)
  local stones, at = redis.call('GET', grave) or '', 1
  while true do
    local found = string.find(stones, name, at, true)
    if not found then return false end
    if (found - 1) % STONE == 0 then return true end
    at = found + 1
  end
end

local function put_stone(grave, stone, name_length)
  if has_stone(grave, string.sub(stone, 1, tonumber(name_length))) then return end
  redis.call('SET', grave, (redis.call('GET', grave) or '') .. stone)
end

