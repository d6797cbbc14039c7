"""Common parts of the benchmarks: free ports, gateways with the same configuration and their stores, and keys to import."""

import hashlib
import json
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIST = str(ROOT / "target/dist/keygate")
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
EMBEDDED = 'kind = "embedded"\npath = "keygate.redb"'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process=None, deadline=60):
    """Waits until a process listens on the port; ends the run after a time-out, or if the process has ended."""
    until = time.monotonic() + deadline
    while time.monotonic() < until and (process is None or process.poll() is None):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    sys.exit(f"no process listens on port {port}")


def configure(folder, port, upstreams, store=EMBEDDED, workers=None):
    """Writes the files of a gateway with the shipped policy and without a request log. Returns its configuration file."""
    shutil.copy(ROOT / "config/policy.toml", folder / "policy.toml")
    config = folder / "keygate.toml"
    config.write_text(f"""
[server]
listen = "127.0.0.1:{port}"
drain_delay = "0s"
{f"workers = {workers}" if workers else ""}
[keys]
max_per_org = 1_000_000
[store]
{store}
[policy]
file = "policy.toml"
[log]
requests = "off"
[admin]
socket = "keygate.sock"
[ops]
listen = "off"
[upstreams.api]
{upstreams}
""")
    return config


def command(keygate, config, *words):
    """Runs a command of keygate and returns its JSON output; a failed command ends the run."""
    ran = subprocess.run([keygate, *words, "--config", config, "--json"], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"keygate {' '.join(words)}: {ran.stderr}")
    return json.loads(ran.stdout)


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def secret_of(number):
    """Returns a well-formed secret; the same number gives the same secret, so that the benchmark need not store them."""
    draw = random.Random(number)
    body = "fh_live_sk_" + "".join(draw.choices(BASE62, k=32))
    check, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        check, digit = divmod(check, 62)
        digits = BASE62[digit] + digits
    return body + digits


def write_lines(path, count):
    with open(path, "w") as out:
        for number in range(count):
            secret = secret_of(number)
            out.write(json.dumps({
                "sha256": hashlib.sha256(secret.encode()).hexdigest(), "name": f"key {number}", "environment": "live",
                "scopes": ["jobs:read"], "last_four": secret[-4:]}) + "\n")


class Gateway:
    """A running gateway with its own store: a new one, or one that is restored from a backup."""

    def __init__(self, binary, folder, store, restored_from=None):
        folder.mkdir()
        self.binary, self.running, settings = binary, [], EMBEDDED
        if store == "redis":
            port = free_port()
            self.running.append(subprocess.Popen(
                ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir", str(folder)],
                stdout=subprocess.DEVNULL))
            wait_for(port, self.running[-1])
            settings = f'kind = "redis"\nurl = "redis://127.0.0.1:{port}"\nallow_without_pepper = true'
        self.port = free_port()
        self.config = configure(folder, self.port, 'live = ["http://127.0.0.1:9"]\nshared = true', settings)
        if restored_from:
            began = time.monotonic()
            restored = subprocess.run([binary, "store", "restore", restored_from, "--config", self.config], capture_output=True, text=True)
            if restored.returncode:
                sys.exit(restored.stderr)
            self.restored_in = time.monotonic() - began
        began = time.monotonic()
        with open(folder / "log", "w") as log:
            self.gateway = subprocess.Popen([binary, "serve", "--config", self.config], stdout=log, stderr=log)
        self.running.append(self.gateway)
        wait_for(self.port, self.gateway)
        self.started_in = time.monotonic() - began
        if restored_from:
            return
        self.org = command(binary, self.config, "orgs", "create", "Bench")["id"]
        self.manager = command(binary, self.config, "keys", "create", "--org", self.org, "--all-scopes", "--name", "manager")["secret"]

    def move_in(self, lines):
        began = time.monotonic()
        tally = command(self.binary, self.config, "keys", "import", str(lines), "--org", self.org)
        return tally["imported"], time.monotonic() - began

    def peak_memory(self):
        """The peak of the resident memory, in MiB."""
        for line in pathlib.Path(f"/proc/{self.gateway.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024

    def connect(self):
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request, status):
        """Returns the seconds until the answer; a wrong status ends the run."""
        began = time.perf_counter()
        self.socket.sendall(request)
        answer = self.socket.recv(65536)
        took = time.perf_counter() - began
        while not answer.endswith(b"}"):
            answer += self.socket.recv(65536)
        if not answer.startswith(b"HTTP/1.1 %d" % status):
            sys.exit(answer.decode())
        return took

    def look_up(self, number):
        request = f"GET /v1/audit_events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {secret_of(number)}\r\n\r\n"
        return self.ask(request.encode(), 403)

    def create(self, number):
        body = json.dumps({"name": f"made {number}", "environment": "live", "scopes": ["jobs:read"]})
        request = (f"POST /v1/api_keys HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.manager}\r\n"
                   f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}")
        return self.ask(request.encode(), 200)

    def stop(self):
        for process in reversed(self.running):
            end(process)
