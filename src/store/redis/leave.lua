#!lua flags=allow-oom
-- A gateway that has ended gives its lease up: nobody is to wait for it.
-- KEYS: gateways, the gateway's own lease. ARGV: the gateway.
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[1], ARGV[1])
return {false, false, false}
