#!lua flags=allow-oom
-- A gateway that ends gives up its lease, so that changes do not wait for it.
-- KEYS: gateways, the gateway's own lease, the
-- format, the prefixes and the peppers that it announces. ARGV: the gateway.
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('SREM', KEYS[1], ARGV[1])
return {false, false, false, false}
