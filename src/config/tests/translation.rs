//! The settings that a configuration gives.

use super::*;

#[test]
fn every_setting_arrives_where_it_belongs() {
    let config = load(
        r#"
            server = { listen = "0.0.0.0:80", plaintext = "behind a TLS terminator", workers = 2 }
            limits = { target = "4KiB", head = 2048, fields = 50, body = "1GiB" }
            [identity_headers]
            org_id = "X-Org"
            [keys]
            prefix = "kg"
            pepper_file = "/run/pepper"
            [store]
            kind = "embedded"
            path = "data/keys.redb"
            [upstreams]
            b = { live = ["http://b"], shared = true, host = "endpoint", answer_timeout = "2m" }
            a = { live = ["http://a:1", "http://a:2"], test = ["http://a:3"] }
            [policy]
            file = "policy.toml"
            [log]
            requests = "json"
            "#,
        &ROUTE.replace("serve = \"keys.self\"", "upstream = \"b\""),
        &[],
    )
    .unwrap();
    assert_eq!(config.listener.listen.to_string(), "0.0.0.0:80");
    assert_eq!(config.listener.workers.unwrap().get(), 2);
    let limits = crate::policy::request::Limits { target: 4096, head: 2048, fields: 50, body: 1 << 30 };
    assert_eq!(config.gateway.limits, limits);
    assert_eq!(config.gateway.headers.org_id, "x-org");
    assert_eq!(config.keys.prefix.as_str(), "kg");
    assert_eq!(config.keys.pepper_files, [PathBuf::from("/run/pepper")]);
    let StoreSettings::Embedded(store) = &config.store else { panic!("{:?}", config.store) };
    assert_eq!(store.path, Path::new("etc/data/keys.redb"), "starts at the folder of the file");
    assert_eq!(config.records.format, RequestLog::Json);
    assert_eq!(config.admin.socket, None);

    let upstream = &config.upstreams[1];
    assert_eq!((&*upstream.name, &upstream.host), ("b", &HostField::Endpoint));
    assert_eq!(upstream.live, upstream.test);
    assert_eq!(upstream.timeouts.answer, Duration::from_secs(120));
    assert_eq!(config.routes.routes()[0].target, Target::Upstream(UpstreamId(1)));
}

#[test]
fn the_environment_adds_and_overrides() {
    let environment = [
        ("KEYGATE__SERVER__LISTEN", "127.0.0.1:1"),
        ("keygate__cache__capacity", "7"),
        ("KEYGATE__KEYS__PREFIX", "k1"),
        ("KEYGATE__STORE__PATH", "7"),
        ("KEYGATE__UPSTREAMS__API__LIVE", "[\"http://live\"]"),
        ("KEYGATE__UPSTREAMS__MORE__LIVE", "['http://more']"),
        ("KEYGATE__UPSTREAMS__MORE__SHARED", "true"),
        ("KEYGATE_CONFIG", "something else"),
        ("PATH", "/bin"),
    ];
    let config =
        load(&around("[server]\nlisten = \"127.0.0.1:9\"\nworkers = 3"), ROUTE, &environment).unwrap();
    assert_eq!(config.listener.listen.to_string(), "127.0.0.1:1");
    assert_eq!(config.listener.workers.unwrap().get(), 3);
    assert_eq!(config.cache.capacity, 7);
    assert_eq!(config.keys.prefix.as_str(), "k1");
    let StoreSettings::Embedded(store) = &config.store else { panic!("{:?}", config.store) };
    assert_eq!(store.path, Path::new("etc/7"), "text that reads as a number is still text");
    assert_eq!(config.upstreams[0].live, [Endpoint::parse("http://live").unwrap()]);
    assert_eq!(config.upstreams[1].test, [Endpoint::parse("http://more").unwrap()]);
}

#[test]
fn a_variable_mends_a_mistake_of_the_file() {
    let broken = around("[server]\nlisten = 3");
    assert!(load(&broken, ROUTE, &[]).is_err());
    assert!(load(&broken, ROUTE, &[("KEYGATE__SERVER__LISTEN", "127.0.0.1:1")]).is_ok());
}

#[test]
fn a_redis_is_described() {
    let toml = around("[keys]\npepper_file = \"pepper\"").replace(
            STORE,
            "[store]\nkind = \"redis\"\nurl = \"redis://redis:7000/2\"\nusername = \"gw\"\npassword_file = \"pw\"\n\
             cell = \"eu\"\nlookup_timeout = \"50ms\"\n",
        );
    let config = load(&toml, ROUTE, &[]).unwrap();
    let settings = redis::Settings {
        username: Some("gw".to_owned()),
        password_file: Some("etc/pw".into()),
        cell: redis::Cell::parse("eu").unwrap(),
        lookup_timeout: Duration::from_millis(50),
        ..redis::Settings::new(redis::Address::parse("redis://redis:7000/2").unwrap())
    };
    assert_eq!(config.store, StoreSettings::Redis(Box::new(settings)));
}

#[test]
fn a_redis_is_found_in_one_way_and_over_tls_where_it_is_said() {
    let redis = |lines: &str| {
        let toml = around("[keys]\npepper_file = \"pepper\"")
            .replace(STORE, &format!("[store]\nkind = \"redis\"\n{lines}\n"));
        load(&toml, ROUTE, &[]).map(|config| config.store).map_err(|mistakes| mistakes.to_string())
    };
    let found = |lines: &str| match redis(lines) {
        Ok(StoreSettings::Redis(settings)) => (settings.place.to_string(), settings.tls),
        other => panic!("{other:?}"),
    };
    let ca = Some(redis::TlsFiles { ca: "etc/ca.pem".into(), client: None });
    let pair = Some(("etc/c.pem".into(), "/k.pem".into()));
    let both = Some(redis::TlsFiles { ca: "etc/ca.pem".into(), client: pair });
    for (lines, place, tls) in [
        ("url = \"redis://a:1\"", "a:1", None),
        ("url = \"rediss://a:1\"\ntls = { ca = \"ca.pem\" }", "a:1", ca),
        (
            "sentinels = [\"a:1\", \"b:2\"]\nmaster_name = \"m\"\n[store.tls]\nca = \"ca.pem\"\ncert = \"c.pem\"\n\
                 key = \"/k.pem\"",
            "the master `m` of the sentinels a:1, b:2",
            both,
        ),
        ("cluster = [\"[::1]:1\"]", "the cluster of [::1]:1", None),
    ] {
        assert_eq!(found(lines), (place.to_owned(), tls), "{lines}");
    }
    for (lines, mistake) in [
        ("", "store.url: missing; name the Redis server"),
        ("url = \"redis://a\"\ncluster = [\"a:1\"]", "store.cluster: `url` is also set"),
        ("sentinels = [\"a:1\"]", "store.master_name: missing"),
        ("sentinels = []\nmaster_name = \"m\"", "store.sentinels: the list is empty"),
        ("sentinels = [\"a\"]\nmaster_name = \"m\"", "store.sentinels[0]: write host:port"),
        ("url = \"redis://a\"\nmaster_name = \"m\"", "store.master_name: only valid with `sentinels`"),
        (
            "sentinels = [\"a:1\"]\nmaster_name = \"m\"\nsentinel_username = \"u\"",
            "store.sentinel_password_file: missing",
        ),
        ("url = \"rediss://a\"", "store.tls.ca: missing"),
        ("url = \"redis://a\"\ntls = { ca = \"ca.pem\" }", "store.url: redis:// means plain text"),
        ("url = \"rediss://a\"\ntls = { ca = \"ca.pem\", key = \"k\" }", "store.tls.cert: missing"),
        ("cluster = [\"a:1\"]\ntls = { cert = \"c\", key = \"k\" }", "store.tls.ca: missing"),
        ("cluster = [\"a:1\"]\ntls = { verify = false }", "store.tls.verify: unknown key"),
    ] {
        let mistakes = redis(lines).unwrap_err();
        assert!(mistakes.contains(mistake) && mistakes.lines().count() == 1, "{lines}: {mistakes}");
    }
    let embedded = format!("{STORE}tls = {{ ca = \"ca.pem\" }}\n");
    let refused = load(&around("").replace(STORE, &embedded), ROUTE, &[]).unwrap_err().to_string();
    assert!(refused.contains("store.tls.ca: only valid with kind = \"redis\""), "{refused}");
}

#[test]
fn a_public_route_goes_live_unless_it_says_test() {
    let route = |more: &str| {
        let policy = format!(
            "[[route]]\nid = \"p\"\nmethods = [\"GET\"]\npaths = [\"/p\"]\npublic = true\nupstream = \"api\"\n{more}"
        );
        load(&around(""), &policy, &[]).unwrap().routes.routes()[0].clone()
    };
    assert_eq!(route("").access, Access::Public { environment: Environment::Live });
    let test =
        route("environment = \"test\"\nforward_authorization = true\nencoded_slash = true\nliteral = true");
    assert_eq!(test.access, Access::Public { environment: Environment::Test });
    assert!(test.forward_authorization && test.encoded_slash && test.literal);
}

#[test]
fn methods_and_operations_are_taken_by_name() {
    let policy = FIRSTHAND_POLICY.replace("[\"PATCH\", \"DELETE\"]", "[\"PATCH\", \"PROPFIND\"]");
    let config = load(DEFAULT_CONFIGURATION, &policy, &[]).unwrap();
    let methods = |id: &str| {
        config.routes.routes().iter().find(|route| &*route.id == id).map(|route| route.methods.clone())
    };
    let propfind = Method::from_bytes(b"PROPFIND").unwrap();
    assert_eq!(methods("webhooks.change"), Some(vec![Method::PATCH, propfind]));
    for operation in Operation::ALL {
        let serves = |target| target == Target::Operation(operation);
        assert!(config.routes.routes().iter().any(|route| serves(route.target)), "{operation:?}");
    }
}

#[test]
fn a_rule_knows_its_line_in_the_policy() {
    let policy = format!(
        "# the API for keys\n\n{ROUTE}\n\n[[route]]\n# a comment\nid = \"health\"\nmethods = [\"GET\"]\npaths = [\"/health\"]\npublic = true\nupstream = \"api\"\n"
    );
    let config = load(&around(""), &policy, &[]).unwrap();
    let places = config.routes.routes().iter().map(|route| (&*route.id, route.place.to_string()));
    let expected = [("own", "etc/policy.toml:3".to_owned()), ("health", "etc/policy.toml:11".to_owned())];
    assert_eq!(places.collect::<Vec<_>>(), expected);
}
