//! Whether what reached the upstreams, and what the client was answered, is what may come of a script.

use std::collections::{BTreeMap, BTreeSet};

use super::http1::{Field, From, Message, Reader, Stop};
use super::identity::{CLIENT, IDENTITY, Key, Keys, OWN, fold, is_reserved};
use super::policy;
use super::script::{self, PREFACE, Script, Stream};
use super::upstream::Received;

/// What the client has of it all.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) output: Vec<u8>,
    /// Whether the gateway closed the connection.
    pub(crate) is_closed: bool,
    /// Whether the gateway kept it after the client had gone.
    pub(crate) is_left: bool,
}

/// How many requests there were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) answers: u64,
    /// With those that were not answered any more; `None` where nobody can tell.
    pub(crate) at_most: Option<u64>,
}

type Verdict<T> = Result<T, String>;

fn must(holds: bool, why: impl FnOnce() -> String) -> Verdict<()> {
    if holds { Ok(()) } else { Err(why()) }
}

/// # Errors
/// What does not hold.
pub(crate) fn judge(
    script: &Script,
    client: &Client,
    received: &[Received],
    keys: &Keys,
) -> Verdict<Counted> {
    must(!client.is_left, || "the connection did not end with its client".to_owned())?;
    let sent = script.bytes();
    for request in received {
        judge_forwarded(request, &script.said, keys)?;
    }
    match &script.streams {
        Some(streams) => {
            let known = (!script.is_opaque).then_some(streams);
            judge_http2(known, &client.output, received, keys)
        }
        // A preface on the way makes everything else frames, which nobody here has written down.
        None if sent.starts_with(PREFACE) => judge_http2(None, &client.output, received, keys),
        None => judge_http1(&sent, client, received, keys),
    }
}

/// Whether a client has everything that it must get of the requests that it has sent.
pub(crate) fn is_settled(script: &Script, client: &Client) -> bool {
    if client.is_closed {
        return true;
    }
    let sent = script.bytes();
    match &script.streams {
        Some(streams) => {
            let Some(answers) = answers_http2(&client.output) else { return true };
            let awaits = |(number, stream): (&u32, &Stream)| {
                let has_answer = answers.iter().any(|answer| answer.stream == *number && answer.is_over());
                stream.has_ended && !stream.was_reset && !stream.fields.is_empty() && !has_answer
            };
            script.is_opaque || script.holds_back || !streams.iter().any(awaits)
        }
        None if sent.starts_with(PREFACE) => true,
        None => {
            let (requests, ..) = Reader::new(&sent, From::Client).requests();
            let complete = requests.iter().filter(|request| request.is_complete).count();
            answers_http1(&client.output, &requests, false).is_ok_and(|answers| answers.len() >= complete)
        }
    }
}

// ---- What holds for each request that was forwarded

fn judge_forwarded(request: &Received, said: &[u8], keys: &Keys) -> Verdict<()> {
    let Received { upstream, is_live, message } = request;
    let [method, target, version] = &message.start;
    let shown = format!("{method} {target} at {upstream}");
    must(version == "HTTP/1.1", || format!("{shown} has version {version}"))?;
    let path = target.split('?').next().unwrap_or_default();
    must(is_canonical(path), || format!("{shown} has more than one reading"))?;
    let key = match message.values("x-key-id")[..] {
        [] => None,
        [id] => Some(keys.with_id(id).ok_or_else(|| format!("{shown} has the identity of nobody"))?),
        _ => return Err(format!("{shown} has several identities")),
    };
    let rule = policy::judge(method, path, key).map_err(|why| format!("{shown}: {why}"))?;
    must(rule.upstream == *upstream, || format!("{shown} belongs to {}", rule.upstream))?;
    if let Some(key) = key {
        must(key.works, || format!("{shown} has key {}, which opens nothing", key.name))?;
        must(key.is_live == *is_live, || format!("{shown} has key {} of the other environment", key.name))?;
        let is_sent = said.windows(key.secret.len()).any(|part| part == key.secret.as_bytes());
        must(is_sent, || format!("{shown} has key {}, which nobody sent", key.name))?;
    }
    judge_identity(message, key, keys).map_err(|why| format!("{shown}: {why}"))?;
    judge_names(message).map_err(|why| format!("{shown}: {why}"))?;
    let credentials = message.values("authorization");
    let may_have = rule.forwards_authorization() && key.is_some();
    must(credentials.is_empty() || may_have, || format!("{shown} carries the key itself"))?;
    for other in keys.keys.iter().filter(|other| other.is_live != *is_live) {
        let crosses =
            credentials.concat().windows(other.secret.len()).any(|part| part == other.secret.as_bytes());
        must(!crosses, || format!("{shown} carries key {} across", other.name))?;
    }
    Ok(())
}

/// What is left of a path when everything has one spelling.
fn is_canonical(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let is_inner = |at: usize| at + 1 < segments.len();
    path.starts_with('/')
        && canonical(path).as_deref() == Some(path)
        && !path.contains(['\\', '#', '"', '<', '>', '{', '}', '|', '^', '`'])
        && path.bytes().all(|byte| (0x21..0x7f).contains(&byte))
        && segments.iter().enumerate().all(|(at, segment)| !(segment.is_empty() && is_inner(at)))
        && !segments.iter().any(|segment| is_dots(segment))
}

fn is_dots(segment: &str) -> bool {
    let decoded = segment
        .replace("%2F", "/")
        .replace("%5C", "/")
        .replace("%3B", ";")
        .replace("%3F", "?")
        .replace("%23", "#");
    decoded.split('/').any(|part| matches!(part.split([';', '?', '#']).next(), Some("." | "..")))
}

/// A path with nothing encoded that needs not be; `None` if an escape is none, or hides another.
fn canonical(path: &str) -> Option<String> {
    let (mut written, bytes) = (String::new(), path.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            written.push(char::from(bytes[at]));
            at += 1;
            continue;
        }
        let digits = path
            .get(at + 1..at + 3)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        let octet = u8::from_str_radix(digits, 16).ok()?;
        let hides = octet == b'%'
            && path.get(at + 3..at + 5).is_some_and(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
        if octet.is_ascii_control() || hides {
            return None;
        }
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            written.push(char::from(octet));
        } else {
            written += &format!("%{octet:02X}");
        }
        at += 3;
    }
    Some(written)
}

/// What keygate says of the sender stands there once, in no other spelling, and says the truth.
fn judge_identity(message: &Message, key: Option<&Key>, keys: &Keys) -> Verdict<()> {
    let mut expected = vec![("x-forwarded-for", CLIENT.to_owned()), ("x-forwarded-proto", "http".to_owned())];
    if let Some(key) = key {
        let mut scopes = key.scopes.to_vec();
        scopes.sort_unstable();
        expected.push(("x-org-id", keys.org.clone()));
        expected.push(("x-environment", if key.is_live { "live" } else { "test" }.to_owned()));
        expected.push(("x-scopes", scopes.join(" ")));
    }
    for (name, value) in expected {
        let mut given = message.value(name).map(|given| String::from_utf8_lossy(given).into_owned());
        if name == "x-scopes" {
            given = given.map(|given| {
                let mut words: Vec<&str> = given.split([' ', ',']).filter(|word| !word.is_empty()).collect();
                words.sort_unstable();
                words.join(" ")
            });
        }
        must(given.as_ref() == Some(&value), || format!("{name} is {given:?}, not {value:?}"))?;
    }
    for name in ["host", "x-request-id", "x-forwarded-host"] {
        must(message.value(name).is_some(), || format!("{name} is not there once"))?;
    }
    must(message.value("x-request-id").is_some_and(|id| id.starts_with(b"req_")), || {
        "the request id is the client's".to_owned()
    })?;
    must(message.value("host") == message.value("x-forwarded-host"), || "two hosts".to_owned())
}

/// No field that speaks of one hop, that upstreams believe, or that could be read as one of keygate's own.
fn judge_names(message: &Message) -> Verdict<()> {
    let asks_for_trailers = message.values("te") == [b"trailers"] && message.values("connection") == [b"te"];
    for (name, value) in &message.fields {
        let (text, folded) = (String::from_utf8_lossy(name).into_owned(), fold(name));
        let is_own =
            OWN.contains(&&*text) || IDENTITY.contains(&&*text) && message.value("x-key-id").is_some();
        let is_framing = text == "transfer-encoding" && value == b"chunked";
        let is_asking = asks_for_trailers && matches!(&*text, "te" | "connection");
        must(!is_reserved(name) || is_own || is_framing || is_asking, || format!("{text} passed"))?;
        let is_alias =
            matches!(&*folded, "content-length" | "content-type" | "transfer-encoding") && folded != text;
        must(!is_alias, || format!("{text} could be read as {folded}"))?;
    }
    must(message.trailers.is_empty(), || "fields behind the body passed".to_owned())
}

// ---- One request as it was sent, and as it was received

/// A request of a client, as the two versions of HTTP have it in common.
struct Sent<'s> {
    method: &'s [u8],
    target: Vec<u8>,
    host: Option<&'s [u8]>,
    fields: &'s [Field],
    body: &'s [u8],
    is_complete: bool,
    /// The names that `Connection` has.
    options: Vec<&'s [u8]>,
}

impl Sent<'_> {
    fn values(&self, name: &str) -> Vec<&[u8]> {
        let of_name = self.fields.iter().filter(|(other, _)| other == name.as_bytes());
        of_name.map(|(_, value)| &value[..]).collect()
    }
}

fn of_message(message: &Message) -> Sent<'_> {
    let [method, target, _] = &message.start;
    let (mut host, mut path) = (message.value("host"), target.as_str());
    for scheme in ["http://", "https://"] {
        let is_of = target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        if is_of {
            let rest = &target[scheme.len()..];
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            host = Some(&rest.as_bytes()[..end]);
            path = &rest[end..];
        }
    }
    Sent {
        method: method.as_bytes(),
        target: with_slash(path),
        host,
        fields: &message.fields,
        body: &message.body,
        is_complete: message.is_complete,
        options: message.options(),
    }
}

/// An absolute target may have no path.
fn with_slash(path: &str) -> Vec<u8> {
    if path.is_empty() || path.starts_with('?') {
        format!("/{path}").into_bytes()
    } else {
        path.as_bytes().to_vec()
    }
}

fn of_stream(stream: &Stream) -> Option<Sent<'_>> {
    let one = |name: &str| -> Option<&[u8]> {
        let mut all = stream.fields.iter().filter(|(other, _)| other == name.as_bytes());
        let first = all.next()?;
        // h2 forgets that a block is malformed if a CONTINUATION begins within a later field. Then the first counts.
        (name.starts_with(':') || all.next().is_none()).then_some(&first.1)
    };
    // A length says where a body ends, as the end of the stream does; what comes behind it comes too late for what has it.
    let lengths = stream.fields.iter().filter(|(name, _)| name == b"content-length");
    let lengths: BTreeSet<_> =
        lengths.map(|(_, value)| String::from_utf8_lossy(value).parse::<usize>().ok()).collect();
    let length = lengths
        .first()
        .copied()
        .flatten()
        .filter(|length| lengths.len() == 1 && *length <= stream.body.len());
    // A fragment is cut off by the parser (src/README.md, known quirks).
    let path = String::from_utf8_lossy(one(":path")?).into_owned();
    let path = path.split('#').next().unwrap_or_default();
    Some(Sent {
        method: one(":method")?,
        target: with_slash(path),
        host: one(":authority").or_else(|| one("host")),
        fields: &stream.fields,
        body: length.map_or(&stream.body[..], |length| &stream.body[..length]),
        is_complete: stream.has_ended || length.is_some(),
        options: Vec::new(),
    })
}

/// Whether a request at an upstream is this one and says what it says, no less and no more.
///
/// # Errors
/// Where they differ.
fn agree(sent: &Sent<'_>, received: &Received, keys: &Keys) -> Verdict<()> {
    let message = &received.message;
    let [method, target, _] = &message.start;
    must(sent.method == method.as_bytes(), || "the method differs".to_owned())?;
    let text = String::from_utf8_lossy(&sent.target).into_owned();
    let (path, query) = text.split_once('?').map_or((&*text, None), |(path, query)| (path, Some(query)));
    let (own_path, own_query) =
        target.split_once('?').map_or((&**target, None), |(path, query)| (path, Some(query)));
    must(canonical(path).as_deref() == Some(own_path), || format!("path {path} became {own_path}"))?;
    must(query == own_query, || format!("query {query:?} became {own_query:?}"))?;
    let host = message.value("host").unwrap_or_default();
    must(sent.host.is_some_and(|sent| sent.eq_ignore_ascii_case(host)), || "the host differs".to_owned())?;
    let begins = sent.body.starts_with(&message.body);
    must(begins && (!message.is_complete || sent.body.len() == message.body.len()), || {
        "the body differs".to_owned()
    })?;
    must(sent.is_complete || !message.is_complete, || "a body that broke off was completed".to_owned())?;
    let credentials = sent.values("authorization");
    must(credentials.len() < 2, || "two keys were sent".to_owned())?;
    let token = credentials.first().map(|value| value[value.len().min(7)..].trim_ascii());
    if let Some(key) = message.value("x-key-id").and_then(|id| keys.with_id(id)) {
        must(token == Some(key.secret.as_bytes()), || format!("it was not sent with key {}", key.name))?;
    } else {
        let means_test = credentials.concat().windows(8).any(|part| part == b"fh_test_");
        must(received.is_live != means_test, || "a test key's sender reached the live side".to_owned())?;
    }
    judge_fields(sent, message)
}

/// Every field of the client's that is not removed arrives as often as it was sent, and no other arrives.
fn judge_fields(sent: &Sent<'_>, message: &Message) -> Verdict<()> {
    let is_plain = |name: &[u8]| {
        let folded = fold(name);
        let is_other = ["authorization", "content-length", "content-type", "cookie"].contains(&&*folded);
        let is_option = sent.options.iter().any(|option| option.eq_ignore_ascii_case(name));
        !is_other && !is_option && !is_reserved(name) && !name.starts_with(b":") && !name.is_empty()
    };
    let mut names: BTreeSet<&[u8]> = sent.fields.iter().map(|(name, _)| &name[..]).collect();
    names.extend(message.fields.iter().map(|(name, _)| &name[..]));
    for name in names.into_iter().filter(|name| is_plain(name)) {
        let text = String::from_utf8_lossy(name).into_owned();
        // HTTP/1.1 has no blanks around a value.
        let were: Vec<_> = sent.values(&text).into_iter().map(<[u8]>::trim_ascii).collect();
        let are: Vec<_> = message.values(&text).into_iter().map(<[u8]>::trim_ascii).collect();
        must(were == are, || format!("{text} was {were:?} and is {are:?}"))?;
    }
    Ok(())
}

// ---- HTTP/1.1

/// All answers in what a client has heard. `is_head` tells of the request behind those that could be read.
fn answers_http1(output: &[u8], requests: &[Message], is_head: bool) -> Verdict<Vec<Message>> {
    let mut reader = Reader::new(output, From::Keygate);
    let mut answers: Vec<Message> = Vec::new();
    while !reader.rest.is_empty() {
        let method = requests.get(answers.len()).map(|request| &*request.start[0]);
        match reader.answer(method.map_or(is_head, |method| method == "HEAD")) {
            Ok(answer) => {
                // The line of a request that cannot be read and came in one piece with others is not known (src/README.md,
                // known quirks): the refusal of a HEAD request has a body then, and the connection ends with it.
                if answer.has_option("close") && reader.rest.starts_with(b"{\"error\":{") {
                    reader.rest = &[];
                }
                answers.push(answer);
            }
            // An interim answer alone.
            Err(Stop::Within) if reader.rest.is_empty() => break,
            Err(stop) => return Err(format!("answer {} cannot be read: {stop:?}", answers.len())),
        }
    }
    Ok(answers)
}

fn judge_http1(sent: &[u8], client: &Client, received: &[Received], keys: &Keys) -> Verdict<Counted> {
    let (requests, stop, rest) = Reader::new(sent, From::Client).requests();
    let answers = answers_http1(&client.output, &requests, rest.starts_with(b"HEAD "))?;
    // Behind what cannot be read nothing is read: one refusal.
    let most = requests.len() + usize::from(stop != Stop::End);
    must(answers.len() <= most, || format!("{} answers to {most} requests", answers.len()))?;
    let mut left: Vec<usize> = (0..received.len()).collect();
    for (at, answer) in answers.iter().enumerate() {
        must(answer.value("x-request-id").is_some(), || format!("answer {at} has no id"))?;
        let Some(number) = answer.value("x-answer") else {
            judge_refusal(answer, requests.get(at)).map_err(|why| format!("answer {at}: {why}"))?;
            continue;
        };
        let number = String::from_utf8_lossy(number).parse::<usize>().unwrap_or(usize::MAX);
        let place = left.iter().position(|left| *left == number);
        // In the order in which they arrived.
        must(place == Some(0), || {
            format!("answer {at} is that of request {number} at the upstreams; left are {left:?}")
        })?;
        left.remove(0);
        let request = requests.get(at).ok_or_else(|| format!("answer {at} is to no request"))?;
        agree(&of_message(request), &received[number], keys).map_err(|why| format!("request {at}: {why}"))?;
        let body = format!("answer {number}.");
        must(request.start[0] == "HEAD" || answer.body == body.as_bytes(), || {
            format!("answer {at} has another body")
        })?;
    }
    // A request whose body broke off was begun, and its answer is a refusal or has not come.
    must(left.len() < 2, || format!("{left:?} reached upstreams and were not answered"))?;
    for number in &left {
        let request = &received[*number];
        must(!request.message.is_complete, || format!("request {number} is complete and was not answered"))?;
        let last = answers.len().saturating_sub(1)..=answers.len();
        let agrees =
            |at: usize| requests.get(at).is_some_and(|sent| agree(&of_message(sent), request, keys).is_ok());
        must(last.clone().any(agrees), || format!("request {number} at an upstream is none of {last:?}"))?;
    }
    let complete = requests.iter().filter(|request| request.is_complete).count();
    let says_close = || {
        let (Some(answer), Some(last)) = (answers.last(), requests.get(answers.len().saturating_sub(1)))
        else {
            return false;
        };
        // A body that was refused is not read to its end, though nothing may be in it: the end of an empty one can come late.
        let has_body = !last.body.is_empty() || last.value("transfer-encoding").is_some();
        let is_unread = answer.value("x-answer").is_none() && has_body;
        answer.has_option("close") || last.start[2] == "HTTP/1.0" || is_unread
    };
    must(answers.len() >= complete || client.is_closed && says_close(), || {
        format!("{} answers to {complete} whole requests", answers.len())
    })?;
    let unanswered = usize::from(answers.len() < most);
    Ok(Counted { answers: answers.len() as u64, at_most: Some((answers.len() + unanswered) as u64) })
}

/// What keygate refuses has its envelope.
fn judge_refusal(answer: &Message, request: Option<&Message>) -> Verdict<()> {
    let status = &answer.start[1];
    must(status.starts_with(['4', '5']), || format!("keygate answers {status}"))?;
    must(status != "500", || "keygate failed".to_owned())?;
    let is_head = request.is_some_and(|request| request.start[0] == "HEAD");
    must(
        is_head || answer.body.starts_with(b"{\"error\":{") || answer.body.is_empty() && request.is_none(),
        || format!("{status} has body {:?}", String::from_utf8_lossy(&answer.body)),
    )
}

// ---- HTTP/2

/// What a client has of one stream.
#[derive(Debug, Default)]
struct AnswerOfStream {
    stream: u32,
    heads: usize,
    body: Vec<u8>,
    has_ended: bool,
    was_reset: bool,
}

impl AnswerOfStream {
    const fn is_over(&self) -> bool {
        self.has_ended || self.was_reset
    }
}

/// The answers in the frames of a gateway; `None` if a frame comes behind the end of its stream.
fn answers_http2(mut output: &[u8]) -> Option<Vec<AnswerOfStream>> {
    let mut answers: Vec<AnswerOfStream> = Vec::new();
    while let [l1, l2, l3, kind, flags, s1, s2, s3, s4, rest @ ..] = output {
        let length = usize::from(*l1) << 16 | usize::from(*l2) << 8 | usize::from(*l3);
        let payload = rest.get(..length)?;
        output = &rest[length..];
        let number = u32::from_be_bytes([*s1, *s2, *s3, *s4]);
        if number == 0 || !matches!(*kind, script::DATA | script::HEADERS | script::RESET) {
            continue;
        }
        let at = answers.iter().position(|answer| answer.stream == number).unwrap_or_else(|| {
            answers.push(AnswerOfStream { stream: number, ..AnswerOfStream::default() });
            answers.len() - 1
        });
        let answer = &mut answers[at];
        match *kind {
            // An answer that ended may still be followed by the request to stop sending.
            script::RESET => answer.was_reset = true,
            _ if answer.is_over() => return None,
            script::HEADERS => answer.heads += 1,
            _ => answer.body.extend_from_slice(payload),
        }
        answer.has_ended |= *kind != script::RESET && flags & 1 != 0;
    }
    output.is_empty().then_some(answers)
}

fn judge_http2(
    streams: Option<&BTreeMap<u32, Stream>>,
    output: &[u8],
    received: &[Received],
    keys: &Keys,
) -> Verdict<Counted> {
    // A client that speaks something else on the way may find anything.
    let heard = match answers_http2(output) {
        Some(answers) => answers,
        None if streams.is_none() => Vec::new(),
        None => return Err("frames come behind the end of their stream".to_owned()),
    };
    let mut left: BTreeSet<usize> = (0..received.len()).collect();
    let mut answers = 0;
    for AnswerOfStream { stream, heads, body, .. } in &heard {
        must(*heads < 2, || format!("stream {stream} has {heads} answers"))?;
        let text = String::from_utf8_lossy(body);
        let number =
            text.strip_prefix("answer ").and_then(|rest| rest.strip_suffix('.')?.parse::<usize>().ok());
        let Some(number) = number else {
            let is_own = body.is_empty() || body.starts_with(b"{\"error\":{");
            must(is_own || text.starts_with("answer"), || format!("stream {stream} has body {text:?}"))?;
            continue;
        };
        answers += 1;
        must(left.remove(&number), || format!("stream {stream} has the answer of another stream"))?;
        if let Some(streams) = streams {
            let sent = streams.get(stream).and_then(of_stream);
            let sent = sent.ok_or_else(|| format!("stream {stream} was never sent"))?;
            agree(&sent, &received[number], keys).map_err(|why| format!("stream {stream}: {why}"))?;
        }
    }
    if let Some(streams) = streams {
        must(received.len() <= streams.len(), || {
            format!("{} requests of {} streams", received.len(), streams.len())
        })?;
        for number in left {
            let outcomes: Vec<(u32, Verdict<()>)> = streams
                .iter()
                .filter_map(|(id, stream)| Some((*id, agree(&of_stream(stream)?, &received[number], keys))))
                .collect();
            must(outcomes.iter().any(|(_, outcome)| outcome.is_ok()), || {
                format!(
                    "request {number} at an upstream is of no stream: {outcomes:?}\n{:?}",
                    received[number]
                )
            })?;
        }
    }
    Ok(Counted { answers, at_most: streams.map(|streams| streams.len() as u64) })
}
