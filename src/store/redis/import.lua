-- New keys, each independent of the others.
-- KEYS: meta, then those of the parts. ARGV: what `ours.lua` needs, then the
-- parts, which are keys and their digests, and a format.
local outcomes, parts = {}, read_parts(2, 2)
local outdated, keeps_only = find_outdated(parts.format[1])
if outdated then return answer('waits', outdated, keeps_only) end
local raised = false
for n, key in ipairs(parts.key) do
  outcomes[n] = refuse_key(key, false) or 'done'
  if outcomes[n] == 'done' then
    -- Once, and not for keys that are all refused: older gateways cannot join any more.
    if not raised then raise_format(parts.format[1]) end
    raised = true
    write_key(key)
  end
end
return answer('done', unpack(outcomes))
