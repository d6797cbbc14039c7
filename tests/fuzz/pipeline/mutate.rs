//! Changes of scripts that know the grammar of scripts, of HTTP/1.1 and of HTTP/2, and whole scripts by chance.

/// Chance from a seed: the same seed gives the same choices (xorshift64*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`, or 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }

    /// True once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'l, T: ?Sized>(&mut self, list: &[&'l T]) -> &'l T {
        list[self.below(list.len())]
    }
}

const METHODS: [&str; 12] =
    ["GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "get"];

const TARGETS: [&str; 34] = [
    "/v1/things",
    "/v1/things/7",
    "/v1/things/7/audit",
    "/v1/things/admin",
    "/v1/things/admin.json",
    "/v1/open/x",
    "/v1/open/closed",
    "/v1/files/a/b",
    "/v1/files/a%2Fb",
    "/v1/files/private/x",
    "/v1/files/private%2Fx",
    "/v1/exact/x",
    "/v1/exact/admin",
    "/v1/exact/admin.json",
    "/v1/any",
    "/v1/other/x",
    "/v1/other/api",
    "/v1/else/where",
    "/v1/",
    "/v1",
    "/admin",
    "/admin/x",
    "/v1/../admin",
    "/v1/things?x=/../admin",
    "/v1/things?{reader.id}",
    "/v1/x%3F/audit",
    "/v1/things/7%3F/audit",
    "http://h/v1/things",
    "http://h/admin",
    "https://evil/v1/things",
    "//h/admin",
    "h:443",
    "*",
    "/",
];

/// Parts of paths that routers read in different ways.
const BITS: [&str; 44] = [
    "%2F", "%2f", "%5C", "/", "//", "/../", "/./", "..", ".", "%2e", "%2E%2e", ";", ";x", ";/", "..;", "%3B",
    "%3F", "%3f", "%23", "#", "?", "%20", "+", " ", "%00", "%09", "%0d%0a", "%7f", "%25", "%252F", "%c0%af",
    "%ff", "%u002f", "%", ".json", ".tar.gz", "~", "\\\\", "\\xff", "@", ":", "admin", "private", "audit",
];

const KEYS: [&str; 12] = [
    "{reader}",
    "{reader}",
    "{reader}",
    "{writer}",
    "{filer}",
    "{admin}",
    "{sandbox}",
    "{sandbox}",
    "{revoked}",
    "{disabled}",
    "{unknown}",
    "fh_live_sk_x",
];

/// Fields as HTTP/1.1 has them. Over HTTP/2 the first colon behind the name is a blank.
const FIELDS: [&str; 71] = [
    "host: h",
    "host: other",
    "Host: h:80",
    "host: h, h",
    "authorization: Basic eA==",
    "authorization: bearer  {reader}",
    "Authorization: Bearer {admin} ",
    "authorization: Bearer {reader}, Bearer {admin}",
    "content-length: 0",
    "content-length: 5",
    "content-length: 05",
    "content-length: +5",
    "content-length: 5, 5",
    "content-length: 18446744073709551621",
    "Content-Length: 30",
    "content_length: 3",
    "content.length: 3",
    "content-type: text/plain",
    "Content_Type: text/plain",
    "transfer-encoding: chunked",
    "Transfer-Encoding: Chunked",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: chunked, chunked",
    "transfer-encoding: identity",
    "transfer-encoding: \\x0bchunked",
    "transfer-encoding : chunked",
    "transfer_encoding: chunked",
    "Transfer.Encoding: chunked",
    "x-key-id: {admin.id}",
    "X_Key_Id: {admin.id}",
    "x.org.id: {org}",
    "X-Scopes: admin",
    "x_scopes: admin",
    "x-environment: live",
    "x-request-id: req_mine",
    "x-forwarded-for: 10.0.0.1",
    "X-Forwarded_For: 10.0.0.1",
    "x-forwarded-host: evil",
    "x-forwarded-user: admin",
    "x-original-url: /admin",
    "X-HTTP-Method-Override: DELETE",
    "client-ip: 127.0.0.1",
    "cf-connecting-ip: 127.0.0.1",
    "x-auth-request-user: admin",
    "proxy: x",
    "connection: close",
    "connection: keep-alive",
    "connection: x-key-id, x-forwarded-for",
    "connection: authorization, host",
    "connection: upgrade",
    "Connection: content-length, transfer-encoding",
    "upgrade: websocket",
    "upgrade: h2c",
    "http2-settings: AAMAAABkAAQAAP__",
    "keep-alive: timeout=5",
    "proxy-connection: keep-alive",
    "proxy-authorization: Basic eA==",
    "te: trailers",
    "te: chunked",
    "trailer: x-key-id",
    "expect: 100-continue",
    "expect: 200-ok",
    "cookie: a=b",
    "x-mark: 1",
    "x-mark: \\xff",
    "x-mark:",
    ": empty",
    "x mark: 1",
    "x-mark: a\\rb",
    "x-mark: a\\nx-key-id: {admin.id}",
    " folded: x",
];

/// Bodies as lines of a script, with the field that says where they end.
const BODIES: [(&str, &str); 16] = [
    ("content-length: 5", "hello\\"),
    ("content-length: 0", "\\"),
    ("transfer-encoding: chunked", "5\nhello\n0\n"),
    ("transfer-encoding: chunked", "5;a=b\nhello\n0\n"),
    ("transfer-encoding: chunked", "5 \nhello\n00\n"),
    ("transfer-encoding: chunked", "5\nhello\n0\nx-key-id: {admin.id}\n"),
    ("transfer-encoding: chunked", "5\\n\\\nhello\n0\n"),
    ("transfer-encoding: chunked", "5\nhello\\n\\\n0\n"),
    ("transfer-encoding: chunked", "6\nhello\n0\n"),
    ("transfer-encoding: chunked", "0x5\nhello\n0\n"),
    ("transfer-encoding: chunked", "10000000000000005\nhello\n0\n"),
    ("transfer-encoding: chunked", "5;\\n\\\nhello\n0\n"),
    (
        "transfer-encoding: chunked",
        "3\nabc\n0\n\nGET /admin HTTP/1.1\nhost: h\nauthorization: Bearer {reader}\n",
    ),
    ("content-length: 34", "GET /admin HTTP/1.1\nhost: h\nx: yz\n"),
    ("content-length: 4", "GET /v1/things HTTP/1.1\nhost: h\nauthorization: Bearer {reader}\n"),
    ("content-length: 5\ntransfer-encoding: chunked", "5\nhello\n0\n"),
];

const FRAMES: [&str; 16] = [
    "ping",
    "pause",
    "settings",
    "settings 4=0",
    "settings 1=0 5=16384",
    "window 0 1000",
    "window 1 0",
    "window 1 2147483647",
    "rst 1 8",
    "rst 3 0",
    "prio 1",
    "goaway",
    "data 1\n hello",
    "data 1 end\n hello",
    "frame 9 4 1\n \\x00",
    "raw\n \\x00\\x00\\x01\\x07",
];

/// Changes a script in a few places.
pub(crate) fn mutate(script: &mut Vec<u8>, random: &mut Random) {
    loop {
        change(script, random);
        if random.once_in(2) {
            script.truncate(16 << 10);
            return;
        }
    }
}

fn change(script: &mut Vec<u8>, random: &mut Random) {
    let is_http2 = script.starts_with(b"http/2");
    let mut lines: Vec<Vec<u8>> = script.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    match random.below(20) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[random.below(lines.len())].clone()),
        2 => {
            let other = random.below(lines.len());
            lines.swap(at, other);
        }
        3..=5 => insert(&mut lines, &field(is_http2, random), is_http2, random),
        6..=8 => change_target(&mut lines, random),
        9 => replace_key(&mut lines, random),
        10 => respell(&mut lines[at], random),
        11 => {
            let place = random.below(lines[at].len() + 1);
            lines[at].splice(place..place, *b"\\|");
        }
        12 | 13 if is_http2 => {
            let frame = random.pick(&FRAMES).as_bytes().to_vec();
            lines.insert(beginning_of_frame(&lines, at), frame);
        }
        12 | 13 => {
            let (field, body) = BODIES[random.below(BODIES.len())];
            if let Some(blank) = lines.iter().position(Vec::is_empty) {
                lines.insert(blank, field.as_bytes().to_vec());
                lines.insert(blank + 2, body.as_bytes().to_vec());
            }
        }
        14 => change_number(&mut lines[at], random),
        15 => {
            let more = if is_http2 { stream(random) } else { request(random) };
            let end = lines.len().saturating_sub(1);
            lines.insert(end, more.trim_end_matches('\n').as_bytes().to_vec());
        }
        16 => {
            let frames = [" +", " !", " @"];
            let name = random.pick(&frames).as_bytes();
            if is_http2 && lines[at].starts_with(b" ") {
                lines[at].splice(0..1, name.iter().copied());
            } else {
                lines[at].push(b'\\');
            }
        }
        17 => {
            let options = [" end", " split 0", " split 9", " pad 7", " prio"];
            let option = random.pick(&options).as_bytes();
            if is_http2 && !lines[at].starts_with(b" ") {
                lines[at].extend_from_slice(option);
            }
        }
        18 => {
            let method = random.pick(&METHODS).as_bytes();
            replace_method(&mut lines, method);
        }
        _ => change_octets(&mut lines[at], random),
    }
    *script = lines.join(&b'\n');
}

fn field(is_http2: bool, random: &mut Random) -> Vec<u8> {
    let field = if random.once_in(6) {
        format!("authorization: Bearer {}", random.pick(&KEYS))
    } else {
        random.pick(&FIELDS).to_owned()
    };
    if !is_http2 {
        return field.into_bytes();
    }
    // Most names are in lower case, as HTTP/2 has them.
    let (name, value) = field[1..]
        .split_once(':')
        .map_or(("x", ""), |(_, value)| (&field[..field.len() - value.len() - 1], value));
    let name = if random.once_in(8) { name.to_owned() } else { name.to_ascii_lowercase() };
    format!(" {name} {}", value.trim_start()).into_bytes()
}

/// Puts a field among fields.
fn insert(lines: &mut Vec<Vec<u8>>, field: &[u8], is_http2: bool, random: &mut Random) {
    let is_beside = |line: &[u8]| if is_http2 { line.starts_with(b" ") } else { line.contains(&b':') };
    let places: Vec<usize> = (0..lines.len()).filter(|at| is_beside(&lines[*at])).collect();
    if !places.is_empty() {
        lines.insert(places[random.below(places.len())] + 1, field.to_vec());
    }
}

/// The place of the frame that a line belongs to.
fn beginning_of_frame(lines: &[Vec<u8>], mut at: usize) -> usize {
    while at > 0 && lines[at].starts_with(b" ") {
        at -= 1;
    }
    at.max(1)
}

/// The lines with a target, each with the place of its target.
fn targets(lines: &[Vec<u8>]) -> Vec<(usize, std::ops::Range<usize>)> {
    let of = |line: &[u8]| {
        if line.starts_with(b" :path ") {
            return Some(7..line.len());
        }
        let end = line.windows(6).rposition(|part| part == b" HTTP/")?;
        let begin = line.iter().position(|byte| *byte == b' ')?;
        (begin < end).then_some(begin + 1..end)
    };
    lines.iter().enumerate().filter_map(|(at, line)| Some((at, of(line)?))).collect()
}

fn change_target(lines: &mut [Vec<u8>], random: &mut Random) {
    let all = targets(lines);
    if all.is_empty() {
        return;
    }
    let (at, target) = all[random.below(all.len())].clone();
    if random.once_in(4) {
        lines[at].splice(target, random.pick(&TARGETS).bytes());
        return;
    }
    let place = target.start + random.below(target.len() + 1);
    match random.below(4) {
        0 if place < target.end => {
            let octet = lines[at][place];
            let encoded = format!("%{octet:02x}").into_bytes();
            let other =
                if octet.is_ascii_alphabetic() && random.once_in(2) { vec![octet ^ 0x20] } else { encoded };
            lines[at].splice(place..=place, other);
        }
        1 => drop(lines[at].splice(target.end..target.end, random.pick(&BITS).bytes())),
        _ => drop(lines[at].splice(place..place, random.pick(&BITS).bytes())),
    }
}

fn replace_key(lines: &mut [Vec<u8>], random: &mut Random) {
    for line in lines {
        let Some(begin) = line.iter().position(|byte| *byte == b'{') else { continue };
        let Some(length) = line[begin..].iter().position(|byte| *byte == b'}') else { continue };
        if random.once_in(2) {
            line.splice(begin..=begin + length, random.pick(&KEYS).bytes());
            return;
        }
    }
}

fn replace_method(lines: &mut [Vec<u8>], method: &[u8]) {
    for line in lines {
        if line.starts_with(b" :method ") {
            line.splice(9.., method.iter().copied());
            return;
        }
        if line.windows(6).any(|part| part == b" HTTP/")
            && let Some(end) = line.iter().position(|byte| *byte == b' ')
        {
            line.splice(..end, method.iter().copied());
            return;
        }
    }
}

/// Writes a name in another spelling that some server takes for the same.
fn respell(line: &mut [u8], random: &mut Random) {
    for byte in line.iter_mut().take_while(|byte| **byte != b':') {
        match *byte {
            b'-' | b'_' | b'.' => *byte = *random.pick(&[&b'-', &b'_', &b'.']),
            letter if letter.is_ascii_alphabetic() && random.once_in(3) => *byte ^= 0x20,
            _ => {}
        }
    }
}

fn change_number(line: &mut Vec<u8>, random: &mut Random) {
    let Some(at) = line.iter().position(u8::is_ascii_digit) else { return };
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = String::from_utf8_lossy(&line[at..at + digits]).parse::<u64>().unwrap_or(0);
    let others =
        [number + 1, number.saturating_sub(1), number + 2, number * 2, 0, 1, 3, 127, 1 << 31, 65_536];
    line.splice(at..at + digits, others[random.below(others.len())].to_string().into_bytes());
}

fn change_octets(line: &mut Vec<u8>, random: &mut Random) {
    const OCTETS: [&str; 14] = [
        "\\r", "\\n", "\\r\\n", "\\x00", "\\t", " ", ":", ",", "\\x80", "\\x7f", "\"", "\\*300x", "\\*9000x",
        "-",
    ];
    let at = random.below(line.len() + 1);
    let end = (at + random.below(3)).min(line.len());
    line.splice(at..end, random.pick(&OCTETS).bytes());
}

/// A script by chance: a few requests over one connection, most of them valid.
pub(crate) fn generate(random: &mut Random) -> Vec<u8> {
    let is_http2 = random.once_in(3);
    let mut script = if is_http2 { "http/2\n" } else { "http/1.1\n" }.to_owned();
    let mut number = 1;
    loop {
        script += &if is_http2 { stream_of(number, random) } else { request(random) };
        number += 2;
        if number > 11 || random.once_in(2) {
            break;
        }
    }
    script.into_bytes()
}

fn target(random: &mut Random) -> String {
    let mut target = random.pick(&TARGETS).to_owned();
    if random.once_in(3) {
        // All of it is ASCII.
        let ends: Vec<usize> = target.match_indices('/').map(|(at, _)| at).chain([target.len()]).collect();
        let at =
            if random.once_in(3) { random.below(target.len() + 1) } else { ends[random.below(ends.len())] };
        target.insert_str(at, random.pick(&BITS));
    }
    if random.once_in(12) {
        target = target.replace("admin", "Admin");
    }
    target
}

fn request(random: &mut Random) -> String {
    let mut request =
        format!("{} {} HTTP/1.{}\n", random.pick(&METHODS), target(random), usize::from(!random.once_in(12)));
    let mut fields = vec!["host: h".to_owned()];
    if !random.once_in(12) {
        fields.push(format!("authorization: Bearer {}", random.pick(&KEYS)));
    }
    for _ in 0..random.below(4) {
        fields.push(random.pick(&FIELDS).to_owned());
    }
    let mut body = "";
    if random.once_in(2) {
        let (field, of) = BODIES[random.below(BODIES.len())];
        fields.push(field.to_owned());
        body = of;
    }
    if random.once_in(4) {
        let at = random.below(fields.len());
        fields.swap(0, at);
    }
    for field in fields {
        request += &field;
        request.push('\n');
    }
    request.push('\n');
    if !body.is_empty() {
        request += body;
        request.push('\n');
    }
    if random.once_in(6) {
        request.insert_str(random.below(request.len()), "\\|");
    }
    request
}

fn stream(random: &mut Random) -> String {
    let number = 1 + 2 * random.below(5);
    stream_of(number, random)
}

fn stream_of(number: usize, random: &mut Random) -> String {
    let has_body = random.once_in(3);
    let mut lines = vec![
        format!(" :method {}", random.pick(&METHODS)),
        " :scheme http".to_owned(),
        " :authority h".to_owned(),
        format!(" :path {}", target(random)),
    ];
    if random.once_in(8) {
        let (one, other) = (random.below(lines.len()), random.below(lines.len()));
        lines.swap(one, other);
    }
    if !random.once_in(12) {
        lines.push(format!(" authorization Bearer {}", random.pick(&KEYS)));
    }
    for _ in 0..random.below(4) {
        lines.push(String::from_utf8_lossy(&field(true, random)).into_owned());
    }
    let mut script = format!("headers {number}{}\n", if has_body { "" } else { " end" });
    for line in lines {
        script += &line;
        script.push('\n');
    }
    if random.once_in(4) {
        script += random.pick(&FRAMES);
        script.push('\n');
    }
    if has_body {
        script += &format!("data {number} end\n hello\n");
    }
    script
}
