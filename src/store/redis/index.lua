-- Enters keys of an organisation into the lists beside its own: those that an older gateway has written.
-- KEYS: meta, the list of all, of live and of test keys, then those of the parts. ARGV: what `ours.lua` needs, then the parts:
-- keys as they were read. One that has changed since was entered with its change.
for _, key in ipairs(read_parts(5, 2).key) do
  if not differs(key.expected, key.record) then index_key(key) end
end
return answer('done', is_indexed(KEYS[2], KEYS[3], KEYS[4]) and 'all' or 'some')
