-- For the scripts that write what their caller has sealed, which may be under another pepper than that of the store by now.
if meta[5] and row ~= string.match(meta[5], '^%S+ (%S+)') then return answer('peppers', meta[5]) end

