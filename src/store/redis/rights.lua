#!lua flags=no-writes
-- The numbers of the commands that the calling user may not run.
-- KEYS: meta. ARGV: commands, their words separated by
-- blanks.
local answer = {false, false, false, false}
for n = 1, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[n], '%S+') do words[#words + 1] = word end
  if not redis.acl_check_cmd(unpack(words)) then answer[#answer + 1] = n end
end
return answer
