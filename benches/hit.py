#!/usr/bin/env python3
"""Instructions per request of a cache hit: one route, forwarded to an upstream and answered, on one connection; with one key, or
with many in random order, each of which was looked up before.

Each binary runs twice under callgrind: with few requests and with many. The difference in instructions is divided by the
difference in requests, so that start and stop do not count. Other load on the machine does not change the number of
instructions, so two builds can be compared to one per cent or better.

Needs Debian's package valgrind, and `cargo build --profile dist`. It uses loopback only, and ends by itself.

    python3 benches/hit.py [--keygate target/dist/keygate] [--keygate OTHER] [--requests 4000] [--keys 1]
"""

import argparse
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

from common import DIST, command, configure, end, free_port, secret_of, wait_for, write_lines

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


def ask(connection, secret):
    connection.sendall((f"GET /v1/jobs HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n"
                        f"Authorization: Bearer {secret}\r\n\r\n").encode())
    answer = b""
    while not answer.endswith(b"{}"):
        answer += connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        sys.exit(answer.decode())


def instructions(keygate, upstream, requests, keys):
    """Returns the number of instructions that the worker executed, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        folder, port = pathlib.Path(folder), free_port()
        config = configure(folder, port, f'live = ["http://127.0.0.1:{upstream}"]\nshared = true', workers=1)
        # Under valgrind a run takes minutes, and keys would be loaded again meanwhile.
        config.write_text(config.read_text() + '[cache]\nttl = "1h"\n')
        org = command(keygate, config, "orgs", "create", "Bench")["id"]
        write_lines(folder / "keys", keys)
        command(keygate, config, "keys", "import", str(folder / "keys"), "--org", org)
        secrets, order = [secret_of(number) for number in range(keys)], random.Random(1)
        gateway = subprocess.Popen(["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={folder}/out", keygate, "serve",
                                    "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        reader = threading.Thread(target=lambda: sys.stderr.writelines(line for line in gateway.stderr if " error " in line))
        reader.start()
        try:
            wait_for(port, gateway)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                for secret in secrets:
                    ask(connection, secret)
                for _ in range(requests):
                    ask(connection, order.choice(secrets))
        finally:
            end(gateway)
            reader.join()
        # The worker has most by far. What others do, such as to note in the store which keys were used, they do once a minute: under
        # valgrind, where requests take fifty times as long, that would count for more than it does.
        threads = [out.read_text() for out in folder.glob("out-*")]
        return max(int(re.search(r"^totals: (\d+)", out, re.M).group(1)) for out in threads)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--keygate", action="append")
    arguments.add_argument("--requests", type=int, default=4000)
    arguments.add_argument("--keys", type=int, default=1)
    arguments = arguments.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is missing: apt-get install valgrind")
    upstream, first = serve_upstream(), None
    for keygate in arguments.keygate or [DIST]:
        few = instructions(keygate, upstream, FEW, arguments.keys)
        each = (instructions(keygate, upstream, FEW + arguments.requests, arguments.keys) - few) / arguments.requests
        first = first or each
        print(f"{keygate}: {each:.0f} instructions a request, {each / first:.4f} of the first", flush=True)


main()
