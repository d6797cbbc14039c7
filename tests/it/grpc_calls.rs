//! gRPC from end to end: a stock client and a stock server of Python (grpcio), with keygate between them and TLS on both sides.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::foreign_upstreams::python;
use crate::harness::desk::write_secret;
use crate::harness::process::{create_key_by, keygate};
use crate::harness::{Authority, Process, create_key, refusing};

/// A server of one service, which takes and gives bytes. It tells each call that its client has left.
const SERVER: &str = r#"
import sys, threading
from concurrent import futures
import grpc

def note(line):
    print(line, flush=True)

def unary(request, context):
    context.send_initial_metadata((("x-first", "1"),))
    context.set_trailing_metadata((("x-last", str(len(request))), ("x-raw-bin", b"\x00\xff")))
    return request[::-1]

def who(request, context):
    told = dict((key, value) for key, value in context.invocation_metadata() if isinstance(value, str))
    return repr((told.get("x-environment"), "authorization" in told, "x-org-id" in told, told.get("te"))).encode()

def many(request, context):
    for n in range(int(request)):
        yield str(n).encode()

def total(requests, context):
    return str(sum(len(request) for request in requests)).encode()

def talk(requests, context):
    for request in requests:
        yield request.upper()

def blob(request, context):
    for _ in range(int(request)):
        yield bytes(1 << 20)

def fails(request, context):
    context.abort(grpc.StatusCode.DATA_LOSS, "gone: 100 % é")

def waits(request, context):
    left = threading.Event()
    context.add_callback(left.set)
    note("waits " + request.decode())
    left.wait(60)
    note("left " + request.decode())
    return b""

ways = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Who": grpc.unary_unary_rpc_method_handler(who),
    "Many": grpc.unary_stream_rpc_method_handler(many),
    "Blob": grpc.unary_stream_rpc_method_handler(blob),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fails": grpc.unary_unary_rpc_method_handler(fails),
    "Waits": grpc.unary_unary_rpc_method_handler(waits),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("acme.v1.Things", ways),))
read = lambda name: open(name, "rb").read()
credentials = grpc.ssl_server_credentials([(read("server-key.pem"), read("server.pem"))])
note("port %d" % server.add_secure_port("127.0.0.1:0", credentials))
server.start()
server.wait_for_termination()
"#;

/// Makes each kind of call, and tells what came.
const CLIENT: &str = r#"
import json, sys, threading
import grpc

address, key = sys.argv[1:3]
options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
credentials = grpc.ssl_channel_credentials(open("ca.pem", "rb").read())
channel = grpc.secure_channel(address, credentials, options=options)
metadata = [("authorization", "Bearer " + key)]
path = "/acme.v1.Things/"
told = {}

call = channel.unary_unary(path + "Unary")
answer, state = call.with_call(b"abc", metadata=metadata)
initial, trailing = dict(state.initial_metadata()), dict(state.trailing_metadata())
told["unary"] = [answer.decode(), initial.get("x-first"), trailing.get("x-last"), list(trailing.get("x-raw-bin"))]
told["who"] = channel.unary_unary(path + "Who")(b"", metadata=metadata).decode()
told["many"] = [int(n) for n in channel.unary_stream(path + "Many")(b"500", metadata=metadata)] == list(range(500))
told["total"] = channel.stream_unary(path + "Total")(iter([b"x" * 1000] * 200), metadata=metadata).decode()

# One message at a time: each waits for the answer to the one before.
turn, words = threading.Semaphore(1), ["one", "two", "three"]
def speak():
    for word in words:
        turn.acquire()
        yield word.encode()
heard = []
for answer in channel.stream_stream(path + "Talk")(speak(), metadata=metadata):
    heard.append(answer.decode())
    turn.release()
told["talk"] = heard

def failure(method, request, timeout=None):
    try:
        channel.unary_unary(path + method)(request, metadata=metadata, timeout=timeout)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
told["fails"] = failure("Fails", b"")
told["deadline"] = failure("Waits", b"deadline", timeout=0.5)[0]

call = channel.unary_unary(path + "Waits").future(b"cancel", metadata=metadata)
sys.stdin.readline()
call.cancel()
told["cancelled"] = call.code().name

told["blob"] = sum(len(part) for part in channel.unary_stream(path + "Blob")(b"100", metadata=metadata))
told["up"] = channel.stream_unary(path + "Total")(iter([bytes(1 << 20)] * 100), metadata=metadata).decode()
print(json.dumps(told))
"#;

/// Waits for the end of one call, and tells it.
const HOLDER: &str = r#"
import sys
import grpc

address, key = sys.argv[1:3]
credentials = grpc.ssl_channel_credentials(open("ca.pem", "rb").read())
channel = grpc.secure_channel(address, credentials, options=[("grpc.enable_http_proxy", 0)])
metadata = [("authorization", "Bearer " + key)]
answers = channel.stream_stream("/acme.v1.Things/Talk")(iter(lambda: sys.stdin.readline().encode(), b""), metadata=metadata)
try:
    for answer in answers:
        print("heard " + answer.decode().strip(), flush=True)
    print("ended OK", flush=True)
except grpc.RpcError as error:
    print("ended " + error.code().name, flush=True)
"#;

const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "things"
methods = ["POST"]
paths = ["/acme.v1.Things/{*method}"]
scopes = ["all"]
upstream = "api"
body_limit = "256MiB"
"#;

/// A server, and a gateway in front of it.
struct World {
    folder: TempDir,
    server: Process,
    gateway: Process,
}

impl World {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let authority = Authority::new();
        authority.write(folder.path(), "ca");
        let certificate = authority.issue(&["127.0.0.1", "localhost"]);
        fs::write(folder.path().join("server.pem"), &certificate.pem).unwrap();
        write_secret(&folder.path().join("server-key.pem"), &certificate.key_pem);
        let mut command = python();
        command.args(["-c", SERVER]).current_dir(folder.path());
        let server = Process::start(command);
        let port = server.out_line("port ").trim_start_matches("port ").trim().to_owned();
        let toml = format!(
            "[policy]\nfile = \"policy.toml\"\n[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ntls = [{{ cert = \"server.pem\", key = \"server-key.pem\" }}]\n\
             [store]\nkind = \"embedded\"\npath = \"keygate.redb\"\n[admin]\nsocket = \"keygate.sock\"\n[ops]\nlisten = \"127.0.0.1:0\"\n\
             [upstreams.api]\nlive = [\"https://127.0.0.1:{port}\"]\ntest = [\"{}\"]\nprotocol = \"auto\"\n\
             [upstreams.api.live_tls]\nca = \"ca.pem\"\n",
            refusing()
        );
        fs::write(folder.path().join("keygate.toml"), toml).unwrap();
        fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
        let gateway = Process::start(keygate(folder.path(), &["serve"]));
        Self { folder, server, gateway }
    }

    fn address(&self) -> SocketAddr {
        let line = self.gateway.err_line("listening on https://");
        line.rsplit("https://").next().unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn client(script: &str, folder: &Path, address: SocketAddr, key: &str) -> Process {
    let mut command = python();
    command.args(["-c", script, &address.to_string(), key]).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Process::start_with_input(command)
}

#[test]
fn calls_of_every_kind_pass_with_metadata_and_status_and_end_where_their_client_ends_them() {
    let world = World::start();
    let (folder, address) = (world.folder.path(), world.address());
    let key = create_key(folder);
    let mut caller = client(CLIENT, folder, address, &key);
    world.server.out_line("waits deadline");
    world.server.out_line("left deadline");
    world.server.out_line("waits cancel");
    let before = world.gateway.memory("VmRSS:");
    caller.say("");
    world.server.out_line("left cancel");
    let told: Value = serde_json::from_str(&caller.out_line("{")).unwrap();
    assert!(caller.wait().success());
    assert_eq!(told["unary"], serde_json::json!(["cba", "1", "3", [0, 255]]));
    assert_eq!(told["who"], "('live', False, True, None)");
    assert_eq!((&told["many"], &told["total"]), (&true.into(), &"200000".into()));
    assert_eq!(told["talk"], serde_json::json!(["ONE", "TWO", "THREE"]));
    assert_eq!(told["fails"], serde_json::json!(["DATA_LOSS", "gone: 100 % é"]));
    assert_eq!((&told["deadline"], &told["cancelled"]), (&"DEADLINE_EXCEEDED".into(), &"CANCELLED".into()));
    let hundred = 100 << 20;
    assert_eq!((&told["blob"], &told["up"]), (&hundred.into(), &hundred.to_string().into()));
    let grown = world.gateway.memory("VmHWM:").saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes for 100 MiB down and as much up");
}

#[test]
fn a_key_that_is_revoked_ends_its_own_call_in_the_middle_and_no_other() {
    let world = World::start();
    let (folder, address) = (world.folder.path(), world.address());
    let keys = ["ended", "kept"].map(|name| {
        let org: &[&str] = if name == "ended" { &["--org", "Example Ltd"] } else { &[] };
        create_key_by(keygate(folder, &[&["keys", "create", "--all-scopes", "--name", name], org].concat()))
    });
    let mut callers = keys.each_ref().map(|key| client(HOLDER, folder, address, key));
    for caller in &mut callers {
        caller.say("one");
        caller.out_line("heard ONE");
    }
    let listed = keygate(folder, &["keys", "list", "--json"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let all = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ended = all.into_iter().find(|key| key["name"] == "ended").unwrap();
    let id = ended["id"].as_str().unwrap();
    let revoked = keygate(folder, &["keys", "revoke", id, "--yes"]).output().unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    let ended = callers[0].out_line("ended ");
    assert!(!ended.contains("OK"), "{ended}");
    callers[1].say("two");
    callers[1].out_line("heard TWO");
}
