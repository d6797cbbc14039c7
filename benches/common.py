"""Common parts of the benchmarks: free ports, gateways with the same configuration, and keys to import."""

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
