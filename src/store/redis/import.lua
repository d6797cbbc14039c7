-- New keys, each for itself: one that is refused is no trouble to the others.
-- KEYS: meta, then those of the parts. ARGV: the incarnation, then the parts, which are keys and their digests.
local outcomes = {}
for n, key in ipairs(read_parts(2, 2).key) do
  outcomes[n] = refuse_key(key, false) or 'done'
  if outcomes[n] == 'done' then write_key(key) end
end
return answer('done', unpack(outcomes))
