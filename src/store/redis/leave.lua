#!lua flags=allow-oom
-- A gateway that ends gives up its lease, so that changes do not wait for it, and nobody asks what it may still do.
-- KEYS: gateways, the gateway's own lease, the format, the prefixes and the peppers that it announces; all that may let keys
-- in, what it may do without a lease. ARGV: the gateway.
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7])
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[6], ARGV[1])
return {false, false, false, false}
