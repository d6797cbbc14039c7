#!/usr/bin/env python3
"""CPU time per request: keygate and HAProxy, with the same task in the same run.

Both have one worker thread and are pinned to processor 0; the load generator (wrk) and the upstream run on processor 1, so that
neither takes time from the measured process. Rounds alternate, A B A B …. Each is measured by the process's own CPU time (user and
system, from /proc), so that waiting does not count. The output is requests per CPU second, and their ratio for each pair of rounds.

Needs Debian's packages haproxy and wrk, and `cargo build --profile dist`. It uses loopback only, and ends by itself.

    python3 benches/peers.py [--rounds 7] [--seconds 4] [--connections 32] [--tls-upstream] [--http2] [--http2-upstream]

With --tls-upstream both reach the upstream over TLS, and verify its certificate; it also needs Debian's package openssl.
With --http2 clients speak HTTP/2, eight requests at a time on each connection (h2load, of Debian's nghttp2-client); with --http2-upstream
both speak it to the upstream. Over plain text each side knows that beforehand.
"""

import argparse
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

from common import DIST, command, configure, end, free_port, wait_for

PEERS = pathlib.Path(__file__).resolve().parent / "peers"


def fill(template, target, values):
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(name, str(value))
    target.write_text(text)
    return target


def certificates(folder):
    """Makes an authority, and a certificate of it for 127.0.0.1 with its key. Returns the authority's file and the other one."""
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench", "-days", "2")
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=upstream")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names",
            "-out", "server.crt", "-days", "2")
    both = folder / "server.pem"
    both.write_text((folder / "server.crt").read_text() + (folder / "server.key").read_text())
    return folder / "ca.pem", both


def cpu_seconds(pid):
    """Returns the user and system time of a process, in seconds. schedstat has nanoseconds for each thread."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Process:
    def __init__(self, name, cpu, *command):
        self.name = name
        self.process = subprocess.Popen(["taskset", "-c", str(cpu), *command], stdout=subprocess.DEVNULL)

    @property
    def pid(self):
        return self.process.pid


def load_http2(url, key, seconds, connections):
    """Runs h2load and returns its number of requests; a status other than 200 ends the run."""
    out = subprocess.run(
        ["taskset", "-c", "1", "h2load", "-t1", f"-c{connections}", "-m8", f"-D{seconds}", "-H", f"authorization: Bearer {key}", url],
        capture_output=True, text=True, check=True).stdout
    done = int(re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", out).group(1))
    if not re.search(r" 0 failed, 0 errored", out):
        sys.exit(out)
    return done


def load_http1(url, key, seconds, connections):
    """Runs wrk and returns its number of requests; a status other than 200 ends the run."""
    out = subprocess.run(
        ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"Authorization: Bearer {key}", url],
        capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(out)
    return int(re.search(r"(\d+) requests in", out).group(1))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--seconds", type=int, default=4)
    arguments.add_argument("--connections", type=int, default=32)
    arguments.add_argument("--keygate", default=DIST)
    arguments.add_argument("--tls-upstream", action="store_true")
    arguments.add_argument("--http2", action="store_true")
    arguments.add_argument("--http2-upstream", action="store_true")
    arguments = arguments.parse_args()
    for tool in ("haproxy", "h2load" if arguments.http2 else "wrk", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: apt-get install haproxy wrk nghttp2-client util-linux")
    load = load_http2 if arguments.http2 else load_http1

    running = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ports = {"LIVE_PORT": free_port(), "TEST_PORT": free_port()}
        keygate_port, haproxy_port = free_port(), free_port()
        scheme, tls, bind, server = "http", "", "", ""
        if arguments.tls_upstream:
            authority, certificate = certificates(folder)
            scheme, bind, server = "https", f"ssl crt {certificate}", f"ssl verify required ca-file {authority}"
            tls = "".join(f'\n[upstreams.api.{one}_tls]\nca = "{authority}"' for one in ("live", "test"))
        front = "proto h2" if arguments.http2 else ""
        if arguments.http2_upstream:
            known = "alpn h2" if arguments.tls_upstream else "proto h2"
            bind, server = f"{bind} {known}", f"{server} {known}"
            tls = f'\nprotocol = "http2"{tls}'
        upstreams = (f"""live = ["{scheme}://127.0.0.1:{ports['LIVE_PORT']}"]\n"""
                     f"""test = ["{scheme}://127.0.0.1:{ports['TEST_PORT']}"]{tls}""")
        ports |= {"BIND_OPTIONS": bind, "SERVER_OPTIONS": server, "FRONT_OPTIONS": front}
        config = configure(folder, keygate_port, upstreams, workers=1)
        made = command(arguments.keygate, config, "keys", "create", "--org", "bench", "--all-scopes", "--name", "bench")
        secret, key = made["secret"], made["key"]
        for name, value in {"org": key["organization_id"], "environment": key["environment"], "key": key["id"],
                            "scopes": ",".join(key["scopes"])}.items():
            (folder / f"{name}.map").write_text(f"{secret} {value}\n")
        (folder / "routes.map").write_text("/v1/jobs jobs:read\n/v1/submissions jobs:read\n")
        try:
            upstream = fill(PEERS / "upstream.cfg", folder / "upstream.cfg", ports)
            running.append(Process("upstream", 1, "haproxy", "-db", "-f", str(upstream)))
            haproxy_cfg = fill(PEERS / "haproxy.cfg", folder / "haproxy.cfg",
                               {**ports, "FRONT_PORT": haproxy_port, "MAP_DIR": folder})
            haproxy = Process("haproxy", 0, "haproxy", "-db", "-f", str(haproxy_cfg))
            keygate = Process("keygate", 0, arguments.keygate, "serve", "--config", str(config))
            running += [haproxy, keygate]
            for port in (ports["LIVE_PORT"], haproxy_port, keygate_port):
                wait_for(port)
            pair = {haproxy: haproxy_port, keygate: keygate_port}
            for process, port in pair.items():
                load(f"http://127.0.0.1:{port}/v1/jobs", secret, 1, arguments.connections)
            ratios, rates = [], {haproxy: [], keygate: []}
            for n in range(arguments.rounds):
                for process, port in pair.items():
                    before = cpu_seconds(process.pid)
                    done = load(f"http://127.0.0.1:{port}/v1/jobs", secret, arguments.seconds, arguments.connections)
                    rates[process].append(done / (cpu_seconds(process.pid) - before))
                ratios.append(rates[keygate][-1] / rates[haproxy][-1])
                print(f"round {n + 1}: haproxy {rates[haproxy][-1]:8.0f}  keygate {rates[keygate][-1]:8.0f}  requests per CPU second, ratio {ratios[-1]:.2f}", flush=True)
            print(f"ratio keygate/haproxy: min {min(ratios):.2f}, median {statistics.median(ratios):.2f}, max {max(ratios):.2f}")
        finally:
            for process in reversed(running):
                end(process.process)


main()
