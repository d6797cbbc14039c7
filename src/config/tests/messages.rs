//! Messages about mistakes in `keygate.toml`, in the variables and in the files that it names.

use super::*;

#[test]
fn all_mistakes_are_told_at_once() {
    let toml = "\
[server]
lisen = \"0.0.0.0:80\"
workers = \"four\"
idle_timeout = 75
head_timeout = \"0s\"
[cache]
ttl = \"soon\"
[upstreams.api]
live = [\"http://a\", 3]
[logg]
requests = \"text\"
";
    assert_says(
        mistakes(toml, ROUTE, &[("KEYGATE__LOG__REQUESTS", "jsn"), ("KEYGATE__NO__SUCH", "1")]),
        &[
            "etc/keygate.toml:1:1: store.kind: missing; write kind = \"embedded\" for one file on this machine, or \
                 kind = \"redis\" for a store that several gateways share",
            "etc/keygate.toml:1:1: policy.file: missing; name the policy file, which lists the routes: file = \
                 \"policy.toml\"",
            "etc/keygate.toml:2:1: server.lisen: unknown key `lisen`; did you mean `listen`?",
            "etc/keygate.toml:3:11: server.workers: expected an integer, found a string; write a number without \
                 quotes",
            "etc/keygate.toml:4:16: server.idle_timeout: expected a duration, found an integer; write a number and a \
                 unit in quotes, as in \"75s\", \"5m\" or \"24h\"",
            "etc/keygate.toml:5:16: server.head_timeout: \"0s\" is out of range; write a value from 1ms to 1day",
            "etc/keygate.toml:7:7: cache.ttl: \"soon\" is not a duration; write a number and a unit in quotes, as in \
                 \"75s\", \"5m\" or \"24h\"",
            "etc/keygate.toml:8:1: upstreams.api.test: missing; name the servers for test keys: test = \
                 [\"http://127.0.0.1:9001\"]; or write shared = true to send test keys to `live`",
            "etc/keygate.toml:9:21: upstreams.api.live[1]: expected a string, found an integer; put it in quotes",
            "etc/keygate.toml:10:2: logg: unknown key `logg`; did you mean `log`?",
            "KEYGATE__LOG__REQUESTS: log.requests: invalid value \"jsn\"; did you mean \"json\"?",
            "KEYGATE__NO__SUCH: no: unknown key `no`; the keys here are `server`, `limits`, `identity_headers`, \
                 `request_headers`, `keys`, `audit`, `store`, `cache`, `ops`, `admin`, `upstreams`, `policy`, `outbox`, `signup`, `log`",
        ],
    );
}

#[test]
fn a_check_that_says_nothing_is_told() {
    let check = |lines: &str| about(&format!("[upstreams.api.check]\n{lines}"));
    assert_says(
        check("method = \"HEAD\"\nstatus = [204]"),
        &[
            "etc/keygate.toml:2:10: upstreams.api.check.method: has no effect without `path`: a check without a path only \
             connects",
            "etc/keygate.toml:3:10: upstreams.api.check.status: has no effect without `path`: a check without a path only \
             connects",
        ],
    );
    assert_says(
        check("path = \"healthz\"\nstatus = [99]\nmethod = \"POST\"\ninterval = \"1ms\""),
        &[
            "etc/keygate.toml:2:8: upstreams.api.check.path: invalid value \"healthz\"; write a path, as in \"/healthz\"",
            "etc/keygate.toml:3:11: upstreams.api.check.status[0]: 99 is out of range; write a value from 200 to 599",
            "etc/keygate.toml:4:10: upstreams.api.check.method: invalid value \"POST\"; write \"GET\" or \"HEAD\" or \"GRPC\"",
            "etc/keygate.toml:5:12: upstreams.api.check.interval: \"1ms\" is out of range; write a value from 100ms to 1h",
        ],
    );
}

#[test]
fn a_request_that_must_be_over_before_its_answer_begins_is_told() {
    let times = |lines: &str| mistakes(&format!("{UPSTREAM}{lines}\n{STORE}{POLICY}"), ROUTE, &[]);
    assert_says(
        times("answer_timeout = \"90s\"\ntotal_timeout = \"1m\""),
        &[
            "etc/keygate.toml:5:17: upstreams.api.total_timeout: is over before `answer_timeout` (1m 30s), which is a part of it; make \
             it longer, or `answer_timeout` shorter",
        ],
    );
    assert_says(
        times("total_timeout = \"0s\""),
        &[
            "etc/keygate.toml:4:17: upstreams.api.total_timeout: \"0s\" is out of range; write a value from 1ms to 1day, or \"off\"",
        ],
    );
    assert_says(
        times("total_timeout = \"none\""),
        &[
            "etc/keygate.toml:4:17: upstreams.api.total_timeout: \"none\" is not a duration; write a number and a unit in quotes, as \
             in \"75s\", \"5m\" or \"24h\", or \"off\"",
        ],
    );
    assert_eq!(times("total_timeout = \"10s\""), "none", "the default of `answer_timeout` is longer");
    let of_route = |lines: &str| {
        let route = ROUTE.replace("serve = \"keys.self\"", &format!("upstream = \"api\"\n{lines}"));
        mistakes(&format!("{UPSTREAM}total_timeout = \"10s\"\n{STORE}{POLICY}"), &route, &[])
    };
    let told = of_route("answer_timeout = \"11s\"");
    let says = "answer_timeout: has no effect: `total_timeout` of the upstream api (10s) is over before; make this shorter, or give the \
                route a `total_timeout` of its own";
    assert!(told.ends_with(says), "{told}");
    assert_eq!(of_route("answer_timeout = \"10s\""), "none");
    assert_eq!(of_route("answer_timeout = \"11s\"\ntotal_timeout = \"12s\""), "none");
    assert_eq!(of_route("answer_timeout = \"11s\"\ntotal_timeout = \"off\""), "none");
}

#[test]
fn limits_of_an_upstream_that_do_not_fit_together_are_told() {
    let limits = |lines: &str| mistakes(&format!("{UPSTREAM}{lines}\n{STORE}{POLICY}"), ROUTE, &[]);
    assert_says(
        limits("max_requests = 0\nmax_waiting = 0"),
        &[
            "etc/keygate.toml:4:16: upstreams.api.max_requests: 0 is out of range; write a value from 1 to 65536",
        ],
    );
    assert_says(
        limits("max_connections = 10\nmax_requests = 20"),
        &[
            "etc/keygate.toml:5:16: upstreams.api.max_requests: each request in flight needs a connection, and `max_connections` \
             allows 10; write a number up to that, or raise `max_connections`",
        ],
    );
    assert_says(
        limits("max_waiting = 20"),
        &[
            "etc/keygate.toml:4:15: upstreams.api.max_waiting: has no effect without `max_requests` or `max_connections`: no \
             request waits; add one of them, or remove it",
        ],
    );
    assert_eq!(limits("max_connections = 1\nmax_waiting = 0"), "none");
}

#[test]
fn an_admin_api_over_tcp_needs_tokens_and_does_not_leave_the_machine_unasked() {
    assert_says(
        about("[admin]\nlisten = \"0.0.0.0:9465\"\nallowed_hosts = [\"http://admin.example\"]"),
        &[
            "etc/keygate.toml:1:1: admin.tokens_file: missing; name the file of tokens; `keygate admin token` prints \
                 a line for it",
            "etc/keygate.toml:2:10: admin.listen: 0.0.0.0:9465 is not a loopback address, so tokens and keys would \
                 cross the network in plain text; listen on loopback, or put a TLS terminator in front and set \
                 plaintext = \"behind a TLS terminator\"",
            "etc/keygate.toml:3:18: admin.allowed_hosts[0]: invalid value \"http://admin.example\"; a host is a name \
                 or an address without a port, as in \"localhost\" or \"[::1]\"",
        ],
    );
    let listen = "[admin]\nlisten = \"127.0.0.1:9465\"\ntokens_file = \"tokens\"";
    let config = load(&around(listen), ROUTE, &[]).unwrap();
    let remote = crate::operators::admin::RemoteSettings {
        listen: "127.0.0.1:9465".parse().unwrap(),
        tokens_file: "etc/tokens".into(),
        allowed_hosts: crate::operators::admin::RemoteSettings::loopback_hosts(),
    };
    assert_eq!(config.admin, crate::operators::admin::Settings { socket: None, remote: Some(remote) });
}

#[test]
fn a_text_that_is_not_toml_is_told_with_what_can_be_read_of_it() {
    assert_says(
        mistakes(
            "[server]\nlisten = \nworkers = four\nlimit = 3\n[stor\nkind = 1\n[cache]\nttl = 1",
            ROUTE,
            &[],
        ),
        &[
            "etc/keygate.toml:1:1: store.kind: missing; write kind = \"embedded\" for one file on this machine, or \
                 kind = \"redis\" for a store that several gateways share",
            "etc/keygate.toml:1:1: policy.file: missing; name the policy file, which lists the routes: file = \
                 \"policy.toml\"",
            "etc/keygate.toml:2:10: invalid TOML: there is no value; write one behind the =",
            "etc/keygate.toml:3:11: invalid TOML: a text stands in quotation marks; put it in quotes",
            "etc/keygate.toml:4:1: server.limit: unknown key `limit`; the keys here are `listen`, `workers`, \
                 `memory`, `max_connections`, `max_connections_per_client`, `handshake_timeout`, `head_timeout`, \
                 `idle_timeout`, `write_timeout`, `tls`, `plaintext`, `trusted_proxies`, `body_idle_timeout`, \
                 `drain_delay`, `drain_timeout`",
            "etc/keygate.toml:5:2: stor: unknown key `stor`; did you mean `store`?",
            "etc/keygate.toml:5:6: invalid TOML: unclosed table, expected `]`; write [stor]",
            "etc/keygate.toml:8:7: cache.ttl: expected a duration, found an integer; write a number and a unit in \
                 quotes, as in \"75s\", \"5m\" or \"24h\"",
        ],
    );
}

#[test]
fn a_key_stands_once_in_a_section() {
    assert_says(
        about("[ops]\nlisten = \"off\"\nlisten = \"off\""),
        &["etc/keygate.toml:3:1: `listen` stands twice in [ops], lines 2 and 3; remove one"],
    );
}

#[test]
fn plain_text_off_loopback_must_be_said() {
    let listen = "0.0.0.0:80 is not a loopback address, so keys would cross the network in plain text; set tls, or \
         listen on loopback, or put a TLS terminator in front and set plaintext = \"behind a TLS terminator\"";
    assert_says(
        about("[server]\nlisten = \"0.0.0.0:80\""),
        &[&format!("etc/keygate.toml:2:10: server.listen: {listen}")],
    );
    assert_says(
        mistakes(&around(""), ROUTE, &[("KEYGATE__SERVER__LISTEN", "0.0.0.0:80")]),
        &[&format!("KEYGATE__SERVER__LISTEN: server.listen: {listen}")],
    );
    assert_says(
        about("[server]\nlisten = \"[::]:80\"\nplaintext = \"yes\""),
        &["etc/keygate.toml:3:13: server.plaintext: expected \"behind a TLS terminator\"; write that if a \
               TLS terminator is in front"],
    );
    assert_eq!(about("[server]\nlisten = \"[::]:80\"\nplaintext = \"behind a TLS terminator\""), "none");
    assert_eq!(about("[server]\nlisten = \"[::1]:80\""), "none");
    let tls = "tls = [{ cert = \"c\", key = \"k\" }]";
    assert_eq!(about(&format!("[server]\nlisten = \"[::]:443\"\n{tls}")), "none");
}

#[test]
fn a_certificate_has_a_file_and_a_key() {
    let config = load(
        &around(
            "[server]\n[[server.tls]]\ncert = \"a.pem\"\nkey = \"/run/a.key\"\n[[server.tls]]\ncert = \"b\"\nkey = \
                 \"c\"",
        ),
        ROUTE,
        &[],
    );
    let files =
        |certificate: &str, key: &str| tls::Files { certificate: certificate.into(), key: key.into() };
    assert_eq!(config.unwrap().tls.certificates, [files("etc/a.pem", "/run/a.key"), files("etc/b", "etc/c")]);
    assert_says(
        about("[server]\ntls = [{ cert = \"a\" }, { cert = \"b\", key = 1, keys = \"c\" }]"),
        &[
            "etc/keygate.toml:2:8: server.tls[a].key: missing; name the PEM file with the certificate's private key",
            "etc/keygate.toml:2:44: server.tls[b].key: expected a string, found an integer; put it in quotes",
            "etc/keygate.toml:2:47: server.tls[b].keys: unknown key `keys`; did you mean `key`?",
        ],
    );
    assert_eq!(about("[server]\ntls = []"), "none");
    assert!(about("[server]\nlisten = \"0.0.0.0:80\"\ntls = []").contains("is not a loopback address"));
    assert_says(
        about("[server]\ntls = { cert = \"a\", key = \"b\" }"),
        &["etc/keygate.toml:2:7: server.tls: expected a list of sections, found a section; write a list, \
                 tls = [{ … }], or [[server.tls]] for each of them"],
    );
}

#[test]
fn only_headers_of_the_list_are_kept_and_none_that_http_needs_is_removed() {
    assert_says(
        about(
            "[server]\ntrusted_proxies = [\"192.0.2.1\"]\n[request_headers]\nkeep_from_trusted = [\"CF-Connecting-IP\", \
             \"CF-Ray\", \"cf_connecting_ip\",\n  \"X-Forwarded-For\", \"X-Org-Id\", \"X-Auth-Request-User\", \
             \"X-Real-I\"]\nstrip = [\"X-Debug\", \"Content-Type\", \"a b\"]",
        ),
        &[
            "etc/keygate.toml:4:42: request_headers.keep_from_trusted[1]: invalid value \"CF-Ray\"; it is not on the list of headers that are \
                 removed; a name that is not on the list passes anyway; `keygate check` prints the list",
            "etc/keygate.toml:4:52: request_headers.keep_from_trusted[2]: invalid value \"cf_connecting_ip\"; it is not on the list of headers \
                 that are removed; write \"cf-connecting-ip\", with dashes: other spellings are never kept",
            "etc/keygate.toml:5:3: request_headers.keep_from_trusted[3]: invalid value \"X-Forwarded-For\"; keygate itself sets this header, so it cannot be \
                 kept; remove it",
            "etc/keygate.toml:5:22: request_headers.keep_from_trusted[4]: invalid value \"X-Org-Id\"; keygate itself sets this header, so it cannot be kept; \
                 remove it",
            "etc/keygate.toml:5:57: request_headers.keep_from_trusted[6]: invalid value \"X-Real-I\"; it is not on the list of headers that are \
                 removed; did you mean \"x-real-ip\"?",
            "etc/keygate.toml:6:21: request_headers.strip[1]: invalid value \"Content-Type\"; HTTP needs this header, so it cannot be removed from every \
                 request",
            "etc/keygate.toml:6:37: request_headers.strip[2]: invalid value \"a b\"; write a header name, as in \"X-Org-Id\"",
        ],
    );
}

#[test]
fn trusted_proxies_are_named() {
    assert_eq!(about("[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\"]"), "none");
    assert_says(
        about(
            "[server]\ntrusted_proxies = [\"0.0.0.0/0\", \"10.1.2.3/8\", \"lb\",\n  \"10.0.0.1\", \"10.0.0.1/32\"]",
        ),
        &[
            "etc/keygate.toml:2:20: server.trusted_proxies[0]: invalid value \"0.0.0.0/0\"; it contains every \
                 address, so any client could claim any address; list only your proxies",
            "etc/keygate.toml:2:33: server.trusted_proxies[1]: invalid value \"10.1.2.3/8\"; the address has bits \
                 after the prefix; write the network 10.0.0.0/8, or the address alone",
            "etc/keygate.toml:2:47: server.trusted_proxies[2]: invalid value \"lb\"; write a network or an address, \
                 as in \"10.0.0.0/8\" or \"192.0.2.7\"",
            "etc/keygate.toml:3:15: server.trusted_proxies[4]: duplicate; remove one",
        ],
    );
}

#[test]
fn sizes_and_counts_are_in_range() {
    assert_says(
        about("[limits]\ntarget = 0\nhead = \"32MB\"\nfields = -1\nbody = \"0B\"\n[cache]\ncapacity = 1.5"),
        &[
            "etc/keygate.toml:2:10: limits.target: 0 is out of range; write a value from 256B to 63KiB",
            "etc/keygate.toml:3:8: limits.head: \"32MB\" is not a size; write bytes, as in 65536, or a unit in \
                 quotes: \"64KiB\", \"128MiB\", \"1GiB\"",
            "etc/keygate.toml:4:10: limits.fields: -1 is out of range; write a value from 8 to 10000",
            "etc/keygate.toml:5:8: limits.body: \"0B\" is out of range; write a value from 1B to 1024GiB",
            "etc/keygate.toml:7:12: cache.capacity: expected an integer, found a decimal number; write a number \
                 without quotes",
        ],
    );
}

#[test]
fn a_cache_leaves_clients_some_of_the_memory() {
    let cache = |memory: &str, capacity: &str| format!("[server]\nmemory = {memory}\n[cache]\n{capacity}");
    assert_says(
        about(&cache("\"128MiB\"", "capacity = 1_000_000")),
        &[
            "etc/keygate.toml:4:12: cache.capacity: 1000000 cached keys can take 1954 MiB; of the 128 MiB that \
                 server.memory says, 41 MiB are for keys and clients together; set cache.capacity to 10688 or less, or \
                 server.memory higher",
        ],
    );
    let warned = |memory, capacity| -> Vec<String> {
        let config = load(&around(&cache(memory, capacity)), ROUTE, &[]).unwrap();
        config.remarks.warnings.iter().map(ToString::to_string).collect()
    };
    let warning = warned("\"256MiB\"", "capacity = 60_000").concat();
    assert!(warning.contains("60000 cached keys can take 118 MiB") && warning.contains(":4:12"), "{warning}");
    assert_eq!(warned("\"256MiB\"", "").len(), 1, "the default may not fit either");
    assert!(warned("\"1GiB\"", "").is_empty());
}

#[test]
fn identity_headers_are_headers_of_their_own() {
    assert_says(
        about(
            "[identity_headers]\norg_id = \"X_Key.Id\"\nenvironment = \"Transfer-Encoding\"\nscopes = \"Content_Type\"\n\
                 request_id = \"X Id\"",
        ),
        &[
            "etc/keygate.toml:2:10: identity_headers.org_id: an upstream could confuse the header x_key.id with that \
                 of `key_id`; choose names that differ in a letter or digit",
            "etc/keygate.toml:3:15: identity_headers.environment: invalid value \"Transfer-Encoding\"; HTTP reserves \
                 this header; choose another name, as in \"X-Org-Id\"",
            "etc/keygate.toml:4:10: identity_headers.scopes: invalid value \"Content_Type\"; HTTP reserves this \
                 header; choose another name, as in \"X-Org-Id\"",
            "etc/keygate.toml:5:14: identity_headers.request_id: invalid value \"X Id\"; write a header name, as in \
                 \"X-Org-Id\"",
        ],
    );
}

#[test]
fn a_weight_belongs_to_its_server_and_some_server_has_one() {
    let live = |list: &str| {
        mistakes(&format!("[upstreams.api]\nlive = {list}\nshared = true\n{STORE}{POLICY}"), ROUTE, &[])
    };
    let mistake = |text: &str| format!("etc/keygate.toml:2:{text}");
    for (list, told) in [
        ("[\"http://a\", { url = \"http://b\", weight = 3 }, { url = \"http://c\" }]", None),
        ("[{ url = \"http://a\", weight = 0 }, \"http://b\"]", None),
        (
            "[{ url = \"http://a\", weight = 0 }]",
            Some(
                "8: upstreams.api.live: every server has the weight 0, so none would get a request; give one of them a weight from 1 to 100",
            ),
        ),
        (
            "[{ url = \"http://a\", weight = 101 }]",
            Some("9: upstreams.api.live[0]: weight: 101 is out of range; write a value from 0 to 100"),
        ),
        (
            "[{ url = \"a\" }]",
            Some(
                "9: upstreams.api.live[0]: url: invalid endpoint; write an endpoint as http://host:port, https://host:port or unix:/path",
            ),
        ),
        (
            "[{ weight = 2 }]",
            Some(
                "9: upstreams.api.live[0]: `url` is missing; write { url = \"http://127.0.0.1:9000\", weight = 3 }",
            ),
        ),
        (
            "[{ url = \"http://a\", wait = 2 }]",
            Some(
                "9: upstreams.api.live[0]: unknown key `wait`; write { url = \"http://127.0.0.1:9000\", weight = 3 }",
            ),
        ),
        (
            "[\"http://a\", { url = \"http://a\", weight = 2 }]",
            Some("21: upstreams.api.live[1]: duplicate; remove one"),
        ),
    ] {
        assert_eq!(live(list), told.map_or("none".to_owned(), mistake), "{list}");
    }
}

#[test]
fn a_name_cannot_be_older_than_it_may_be() {
    let ages = |lines: &str| mistakes(&format!("{UPSTREAM}{lines}\n{STORE}{POLICY}"), ROUTE, &[]);
    assert_eq!(ages("names_min_age = \"1m\"\nnames_max_age = \"1m\""), "none");
    assert_says(
        ages("names_min_age = \"1m\""),
        &[
            "etc/keygate.toml:4:17: upstreams.api.names_min_age: `names_min_age` (1m) is longer than `names_max_age` (5s); make one of \
             them shorter or longer",
        ],
    );
}

#[test]
fn an_environment_has_an_upstream_of_its_own() {
    let toml = |upstreams: &str| mistakes(&format!("{STORE}{POLICY}[upstreams]\n{upstreams}"), ROUTE, &[]);
    assert_eq!(toml("a = { live = [\"http://a\"], shared = true }"), "none");
    assert_says(
        toml(
            "a = { live = [\"http://a\"], test = [] }\n\
                 b = { live = [\"http://A:80\"], test = [\"http://a\"] }\n\
                 c = { live = [\"http://a\"], test = [\"http://b\"], shared = true }\n\
                 d = { test = [\"https://user:hunter2@d\"] }\n\
                 e = 3\n\
                 F = { live = [\"http://a\"], shared = true, keepalive = true }",
        ),
        &[
            "etc/keygate.toml:6:35: upstreams.a.test: the list is empty; list at least one endpoint, as in \
                 [\"http://127.0.0.1:9000\"]",
            "etc/keygate.toml:7:38: upstreams.b.test: http://a:80 is also in `live`, so test keys would reach a live \
                 server; use two servers, or remove `test` and write shared = true",
            "etc/keygate.toml:8:58: upstreams.c.shared: true sends test keys to `live`, but `test` is also set; \
                 remove one of the two",
            "etc/keygate.toml:9:5: upstreams.d.live: missing; list at least one endpoint, as in \
                 [\"http://127.0.0.1:9000\"]",
            "etc/keygate.toml:9:15: upstreams.d.test[0]: invalid endpoint; an endpoint has no path, query or user: \
                 keygate forwards the path that it authorised",
            "etc/keygate.toml:10:5: upstreams.e: expected a section, found an integer; write a heading in brackets \
                 and put its keys below it",
            "etc/keygate.toml:11:5: upstreams.F: invalid name; write 1 to 64 characters from a-z 0-9 _ -",
            "etc/keygate.toml:11:43: upstreams.F.keepalive: unknown key `keepalive`; the keys here are `live`, \
                 `test`, `shared`, `host`, `protocol`, `connect_timeout`, `answer_timeout`, `idle_timeout`, `stream_idle_timeout`, \
                 `total_timeout`, `ping_after`, `names_min_age`, `names_max_age`, `connection_max_age`, `connection_max_requests`, `max_connections`, `max_requests`, `max_waiting`, `check`, `live_tls`, `test_tls`",
        ],
    );
}

#[test]
fn what_is_spoken_to_an_upstream_is_one_of_three_and_shares_connections_or_not() {
    let of = |lines: &str| {
        let toml = format!(
            "{STORE}{POLICY}[upstreams.api]\nlive = [\"http://a\"]\nshared = true\nmax_connections = 2\nmax_requests = 9\n{lines}"
        );
        mistakes(&toml, ROUTE, &[])
    };
    for shared in ["auto", "http2"] {
        assert_eq!(of(&format!("protocol = \"{shared}\"\nping_after = \"1s\"")), "none");
    }
    assert!(of("protocol = \"http1\"").contains("each request in flight needs a connection"));
    let limited = |lines: &str| {
        let toml = format!(
            "{STORE}{POLICY}[upstreams.api]\nlive = [\"http://a\"]\nshared = true\nprotocol = \"http2\"\n{lines}"
        );
        mistakes(&toml, ROUTE, &[])
    };
    assert!(
        limited("max_connections = 2\nmax_waiting = 3")
            .contains("has no effect without `max_requests`: no request waits")
    );
    assert_eq!(limited("max_requests = 2\nmax_waiting = 3"), "none");
    let told = of("protocol = \"h2\"\nping_after = \"0s\"");
    assert!(told.contains("etc/keygate.toml:10:12: upstreams.api.protocol: "), "{told}");
    assert!(told.contains("\"auto\"") && told.contains("\"http1\"") && told.contains("\"http2\""), "{told}");
    assert!(told.contains("etc/keygate.toml:11:14: upstreams.api.ping_after: "), "{told}");

    let check = |protocol: &str, lines: &str| {
        of(&format!("protocol = \"{protocol}\"\n[upstreams.api.check]\nmethod = \"GRPC\"\n{lines}"))
    };
    assert_eq!(check("http2", "path = \"/acme.v1.Things\""), "none");
    assert!(check("auto", "path = \"/\"").contains("\"auto\" speaks HTTP/1.1 to http://a:80"));
    assert!(check("http2", "path = \"/acme/Things\"").contains("names no service of gRPC"));
    assert!(
        check("http2", "path = \"/\"\nstatus = [200]").contains("upstreams.api.check.status: has no effect")
    );
    assert!(check("http1", "path = \"/\"").contains("\"GRPC\" needs HTTP/2"));
}

#[test]
fn tls_to_an_upstream_is_whole_and_for_all_of_its_servers() {
    let toml = |upstreams: &str| mistakes(&format!("{STORE}{POLICY}[upstreams]\n{upstreams}"), ROUTE, &[]);
    assert_eq!(
        toml(
            "a = { live = [\"https://a\", \"https://b\"], shared = true, live_tls = { server_name = \"10.0.0.1\" } }\n\
             b = { live = [\"https://a\"], test = [\"unix:/run/b\"], host = \"api:80\", live_tls = { verify = \"full\" } }"
        ),
        "none"
    );
    assert_says(
        toml(
            "a = { live = [\"http://a\"], shared = true, live_tls = { ca = \"ca.pem\" } }\n\
             b = { live = [\"https://a\", \"unix:/run/b\"], shared = true, live_tls = { ca = \"ca.pem\" } }\n\
             c = { live = [\"https://a\"], shared = true, live_tls = { cert = \"c.pem\" } }\n\
             d = { live = [\"https://a\"], shared = true, live_tls = { server_name = \"a b\", verify = \"off\" } }\n\
             e = { live = [\"https://a\"], shared = true, live_tls = { ca = \"ca.pem\", verify = \"dangerously-off\" } }\n\
             f = { live = [\"https://a\"], shared = true, test_tls = { ca = \"ca.pem\" } }\n\
             g = { live = [\"unix:run/api.sock\"], shared = true, host = \"clinet\" }\n\
             h = { live = [\"unix:/run/api.sock\"], test = [\"unix:/run/api.sock\"] }\n\
             i = { live = [\"https://[::1]:0\", \"https://a..b\"], shared = true }",
        ),
        &[
            "etc/keygate.toml:6:14: upstreams.a.live: http://a:80 is plain text, but `live_tls` is set; write https://, or \
                 remove `live_tls`",
            "etc/keygate.toml:7:14: upstreams.b.live: unix:/run/b is plain text, but `live_tls` is set; write https://, or \
                 remove `live_tls`",
            "etc/keygate.toml:8:55: upstreams.c.live_tls.key: missing; a client certificate needs `cert` and `key`; add it, \
                 or remove `cert`",
            "etc/keygate.toml:9:71: upstreams.d.live_tls.server_name: invalid value \"a b\"; write a DNS name, as in \
                 \"api.internal\", or an IP address",
            "etc/keygate.toml:9:87: upstreams.d.live_tls.verify: invalid value \"off\"; write \"full\" or \"dangerously-off\"",
            "etc/keygate.toml:10:62: upstreams.e.live_tls.ca: has no effect with verify = \"dangerously-off\"; remove one of \
                 the two",
            "etc/keygate.toml:11:5: upstreams.f: `test_tls` is for servers in `test`, and with shared = true there are none; \
                 `live_tls` holds for test keys too; remove `test_tls`",
            "etc/keygate.toml:12:15: upstreams.g.live[0]: invalid endpoint; name a socket by its path from the root, of at \
                 most 107 bytes, as in unix:/run/api.sock",
            "etc/keygate.toml:12:59: upstreams.g.host: invalid value \"clinet\"; write \"client\", \"endpoint\" or a name with a \
                 dot or a port, as in \"api.internal\" or \"api:8000\"",
            "etc/keygate.toml:13:45: upstreams.h.test: unix:/run/api.sock is also in `live`, so test keys would reach a live \
                 server; use two servers, or remove `test` and write shared = true",
            "etc/keygate.toml:14:15: upstreams.i.live[0]: invalid endpoint; write an endpoint as http://host:port, \
                 https://host:port or unix:/path; the port must be a number from 1 to 65535, in digits only and \
                 without leading zeros",
            "etc/keygate.toml:14:34: upstreams.i.live[1]: invalid endpoint; no certificate can be for this host: name the server by its \
                 DNS name or its IP address",
        ],
    );
}

#[test]
fn a_variable_is_told_by_its_name() {
    let environment = [
        ("KEYGATE__", "1"),
        ("KEYGATE__A__B__C__D__E", "1"),
        ("KEYGATE__CACHE__CAPACITY", "secret"),
        ("KEYGATE__SERVER", "127.0.0.1:1"),
        ("KEYGATE__SERVR__LISTEN", "secret"),
        ("KEYGATE__SERVR__WORKERS", "3"),
        ("KEYGATE__SERVER__LISTEN__PORT", "1"),
        ("KEYGATE__SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
        ("KEYGATE__STORE__PASSWORD", "secret"),
        ("KEYGATE__STORE__KIND", "{ redis = 1 }"),
        ("KEYGATE__LOG__REQUESTS", "off"),
        ("keygate__log__requests", "text"),
    ];
    assert_says(
        mistakes(&around("[server]\nlisten = \"127.0.0.1:9\""), ROUTE, &environment),
        &[
            "KEYGATE__: the name has an empty part; write KEYGATE__SECTION__KEY",
            "KEYGATE__A__B__C__D__E: a.b.c.d.e: too many parts; write two underscores between two names, and one \
                 within a name",
            "KEYGATE__CACHE__CAPACITY: cache.capacity: expected an integer, found a string; write a number without \
                 quotes",
            "KEYGATE__SERVER: server: this is a section; name one of its keys",
            "KEYGATE__SERVER__LISTEN__PORT: server.listen.port: the name goes on behind a key, which holds a string; \
                 remove the last part of the name",
            "KEYGATE__SERVER__TRUSTED_PROXIES: server.trusted_proxies: expected a list, found a string; write it as \
                 [\"…\", \"…\"]",
            "KEYGATE__SERVR__LISTEN: servr: unknown key `servr`; did you mean `server`?",
            "KEYGATE__SERVR__WORKERS: servr.workers: unknown section `servr`; did you mean \
                 KEYGATE__SERVER__WORKERS?",
            "KEYGATE__STORE__KIND: store.kind: the value is a table; set each of its keys by a variable of its own",
            "KEYGATE__STORE__PASSWORD: store.password: unknown key `password`; the keys here are `kind`, `path`, \
                 `url`, `sentinels`, `cluster`, `master_name`, `sentinel_username`, `sentinel_password_file`, `tls`, \
                 `username`, `password_file`, `cell`, `memory_file`, `connect_timeout`, `lookup_timeout`, `command_timeout`, \
                 `allow_without_pepper`, `keep_ended`",
            "keygate__log__requests: log.requests: KEYGATE__LOG__REQUESTS sets the same key; remove one of the two \
                 variables",
        ],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_told_by_its_name() {
    assert_says(
        mistakes(&format!("{STORE}{UPSTREAM}[policy]\nfile = \"none.toml\""), ROUTE, &[]),
        &["etc/keygate.toml:7:8: policy.file: cannot read etc/none.toml: no such file"],
    );
    let mistakes = Config::load(Path::new("no/such/keygate.toml"), []).unwrap_err();
    assert!(mistakes.is_unreadable());
    assert_says(
        mistakes,
        &["no/such/keygate.toml: cannot read the file: No such file or directory (os error 2); name the \
             configuration file with --config"],
    );
}

#[test]
fn a_prefix_is_a_word_of_its_own() {
    let prefix =
        |text: &str| mistakes(&format!("[keys]\nprefix = \"{text}\"\n{STORE}{UPSTREAM}{POLICY}"), ROUTE, &[]);
    const FORM: &str =
        "a key prefix is 1 to 16 lower-case letters and digits and starts with a letter, as in \"fh\"";
    for wrong in ["", "FH", "f_h", "2fh", "fh_live", "abcdefghijklmnopq"] {
        assert_says(
            prefix(wrong),
            &[&format!("etc/keygate.toml:2:10: keys.prefix: invalid value \"{wrong}\"; {FORM}")],
        );
    }
    for taken in ["key", "org", "kgadmin", "live", "test"] {
        let said = "this word begins an id or an operator's token, or stands in the middle of every key; take another, as \
                    in \"fh\"";
        assert_says(
            prefix(taken),
            &[&format!("etc/keygate.toml:2:10: keys.prefix: invalid value \"{taken}\"; {said}")],
        );
    }
    assert_says(prefix("fh2"), &["none"]);
}

#[test]
fn a_store_is_of_one_kind() {
    let store = |lines: &str| mistakes(&format!("[store]\n{lines}{UPSTREAM}{POLICY}"), ROUTE, &[]);
    assert_says(
        store("kind = \"embedded\"\nurl = \"redis://a\"\n"),
        &["etc/keygate.toml:3:7: store.url: only valid with kind = \"redis\"; remove it"],
    );
    assert_says(
        store("kind = \"redis\"\npath = \"keys.redb\"\nusername = \"gw\"\n"),
        &[
            "etc/keygate.toml:1:1: store.url: missing; name the Redis server: url = \"redis://127.0.0.1:6379\", or \
                 sentinels = […], or cluster = […]",
            "etc/keygate.toml:1:1: store.password_file: missing; name the file that holds the password of `username`",
            "etc/keygate.toml:1:1: store: without a pepper, every client that can write to Redis can create keys; \
                 set keys.pepper_file, or allow_without_pepper = true",
            "etc/keygate.toml:3:8: store.path: only valid with kind = \"embedded\"; remove it",
        ],
    );
    let unsealed = "allow_without_pepper = true\n";
    assert_says(store(&format!("kind = \"redis\"\nurl = \"redis://a\"\n{unsealed}")), &["none"]);
    for (url, said) in [
        ("redis://u:hunter2@a", "leave user and password out of it; write `username` and `password_file`"),
        ("localhost:6379", "write redis://host:port, as in \"redis://127.0.0.1:6379\", or rediss:// for TLS"),
    ] {
        let said = format!("etc/keygate.toml:3:7: store.url: {said}");
        assert_says(store(&format!("kind = \"redis\"\nurl = \"{url}\"\n{unsealed}")), &[&said]);
    }
}

#[test]
fn a_port_is_written_in_digits_and_brackets_are_for_ipv6() {
    const HOST: &str = "the host must be a name, an IPv4 address or an IPv6 address in brackets";
    const PORT: &str = "the port must be a number from 1 to 65535, in digits only and without leading zeros";
    let live = |url: &str| {
        let upstreams = format!("[upstreams]\na = {{ live = [\"{url}\"], shared = true }}");
        mistakes(&format!("{STORE}{POLICY}{upstreams}"), ROUTE, &[])
    };
    let redis = |url: &str| {
        let store = format!("[store]\nkind = \"redis\"\nallow_without_pepper = true\nurl = \"{url}\"\n");
        mistakes(&format!("{store}{UPSTREAM}{POLICY}"), ROUTE, &[])
    };
    for (place, wrong) in [
        ("[junk]:80", HOST),
        ("a,b:80", HOST),
        ("010.0.0.1:80", HOST),
        ("a:+80", PORT),
        ("a:080", PORT),
        ("a:0", PORT),
        ("a: 80", PORT),
    ] {
        assert_says(
            live(&format!("http://{place}")),
            &[&format!(
                "etc/keygate.toml:6:15: upstreams.a.live[0]: invalid endpoint; write an endpoint as \
                     http://host:port, https://host:port or unix:/path; {wrong}"
            )],
        );
        assert_says(
            redis(&format!("redis://{place}")),
            &[&format!(
                "etc/keygate.toml:4:7: store.url: write redis://host:port, as in \"redis://127.0.0.1:6379\", or \
                     rediss:// for TLS; {wrong}"
            )],
        );
    }
    for listen in ["127.0.0.1:+80", "127.0.0.1:080", "[junk]:80"] {
        assert_says(
            about(&format!("[server]\nlisten = \"{listen}\"\n[ops]\nlisten = \"{listen}\"")),
            &[
                &format!(
                    "etc/keygate.toml:2:10: server.listen: invalid value \"{listen}\"; write an address and a port, \
                         as in \"127.0.0.1:8080\""
                ),
                &format!(
                    "etc/keygate.toml:4:10: ops.listen: invalid value \"{listen}\"; write an address and a port, as \
                         in \"127.0.0.1:9464\", or \"off\""
                ),
            ],
        );
    }
}

#[test]
fn no_mistake_shows_a_secret() {
    let secrets = "[store]\npassword = \"hunter2\"\n[keys]\npepper = \"hunter2\"\npepper_file = [\"hunter2\"]\n\
                       accept_without_checksum = \"hunter2\"\n[upstreams.a]\nlive = [\"http://u:hunter2@h\"]\n\
                       test = \"hunter2\"\nhost = \"http://u:hunter2@h\"\n[server]\nplaintext = \"hunter2\"\nworkers = hunter2\n[cache\n hunter2";
    let said = mistakes(secrets, ROUTE, &[("KEYGATE__STORE__PEPPER", "hunter2")]);
    assert!(said.lines().count() > 8, "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
