#!/usr/bin/env python3
"""Instructions per request of a cache hit: one key, one route, forwarded to an upstream and answered, on one connection.

Each binary runs twice under callgrind: with few requests and with many. The difference in instructions is divided by the
difference in requests, so that start and stop do not count. Other load on the machine does not change the number of
instructions, so two builds can be compared to one per cent or better.

Needs Debian's package valgrind, and `cargo build --profile dist`. It uses loopback only, and ends by itself.

    python3 benches/hit.py [--keygate target/dist/keygate] [--keygate OTHER] [--requests 4000]
"""

import argparse
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

from common import DIST, command, configure, end, free_port, wait_for

FEW = 1000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def serve_upstream():
    """Starts a server that gives the same answer to every request. Returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        while received := connection.recv(65536):
            for _ in range(received.count(b"\r\n\r\n")):
                connection.sendall(ANSWER)

    def accept():
        while True:
            threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def instructions(keygate, upstream, requests):
    """Returns the number of instructions that the process executed, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        folder, port = pathlib.Path(folder), free_port()
        config = configure(folder, port, f'live = ["http://127.0.0.1:{upstream}"]\nshared = true', workers=1)
        secret = command(keygate, config, "keys", "create", "--org", "bench", "--all-scopes", "--name", "bench")["secret"]
        request = (f"GET /v1/jobs HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n"
                   f"Authorization: Bearer {secret}\r\n\r\n").encode()
        gateway = subprocess.Popen(["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", keygate, "serve",
                                    "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors = []
        reader = threading.Thread(target=lambda: errors.extend(gateway.stderr))
        reader.start()
        try:
            wait_for(port, gateway)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                for _ in range(requests):
                    connection.sendall(request)
                    answer = b""
                    while not answer.endswith(b"{}"):
                        answer += connection.recv(65536)
                    if not answer.startswith(b"HTTP/1.1 200"):
                        sys.exit(answer.decode())
        finally:
            end(gateway)
            reader.join()
        return int(re.search(r"Collected : (\d+)", "".join(errors)).group(1))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--keygate", action="append")
    arguments.add_argument("--requests", type=int, default=4000)
    arguments = arguments.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is missing: apt-get install valgrind")
    upstream, first = serve_upstream(), None
    for keygate in arguments.keygate or [DIST]:
        few = instructions(keygate, upstream, FEW)
        each = (instructions(keygate, upstream, FEW + arguments.requests) - few) / arguments.requests
        first = first or each
        print(f"{keygate}: {each:.0f} instructions a request, {each / first:.4f} of the first", flush=True)


main()
