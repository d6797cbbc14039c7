use crate::harness::{Call, Gateway, Upstream};

#[test]
fn an_authorised_request_reaches_the_upstream_of_its_environment_as_the_canonical_request() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::in_front_of(&live, &test);
    let key = gateway.live_key();
    let answer = gateway.fetch(&Call::get("/v1/jobs?a=b&c=%20").key(&key.secret).field("x-org-id", "forged"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "live"));
    let seen = live.only();
    assert_eq!(seen.request_line(), "GET /v1/jobs?a=b&c=%20 HTTP/1.1");
    assert_eq!(seen.value("x-org-id"), gateway.org.to_string());
    println!("{:#?}", seen.head);
    assert_eq!(test.connections(), 0);
}
