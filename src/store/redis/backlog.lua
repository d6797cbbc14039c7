#!lua flags=no-writes
-- How many news wait to be delivered, due or not.
-- KEYS: meta, when they are due.
local meta = redis.call('HMGET', KEYS[1], 'incarnation', 'schema', 'event', 'format')
return {meta[1], meta[2], meta[3], meta[4], redis.call('ZCARD', KEYS[2])}
