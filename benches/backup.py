#!/usr/bin/env python3
"""The time of a backup and of a restore with a million keys, and of a restart and a compaction of the embedded store with them.

A running gateway writes the backup, while a client looks a key up that the gateway has not cached, again and again. The backup is
restored into an empty store of each kind; a gateway is started on each, and a sample of the keys must open there. Nothing else
is compared, so the times say what this machine does.

Needs Debian's package redis-server, and `cargo build --profile dist`. It uses loopback only, and ends by itself.

    python3 benches/backup.py [--store embedded] [--keys 1000000] [--samples 200]
"""

import argparse
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from common import DIST, Gateway, write_lines

MIB = 1 << 20


def run(binary, config, *words):
    began = time.monotonic()
    ran = subprocess.run([binary, *words, "--config", config], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"keygate {' '.join(words)}: {ran.stderr}")
    return time.monotonic() - began


def look_up_until(gateway, keys, is_over, times):
    """Looks up other keys until told to stop."""
    draw = random.Random(2)
    gateway.connect()
    while not is_over.is_set():
        times.append(gateway.look_up(draw.randrange(keys)) * 1e3)
        time.sleep(0.005)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--store", choices=["embedded", "redis"], default="embedded")
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--samples", type=int, default=200)
    arguments.add_argument("--keygate", default=DIST)
    arguments = arguments.parse_args()
    binary, running = arguments.keygate, []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_lines(folder / "keys.jsonl", arguments.keys)
        backup = folder / "backup"
        try:
            first = Gateway(binary, folder / "first", arguments.store)
            running.append(first)
            moved, seconds = first.move_in(folder / "keys.jsonl")
            print(f"{arguments.store}: {moved} keys moved in, {seconds:.1f} s", flush=True)
            times, is_over = [], threading.Event()
            client = threading.Thread(target=look_up_until, args=[first, arguments.keys, is_over, times])
            client.start()
            seconds = run(binary, first.config, "store", "backup", str(backup))
            is_over.set()
            client.join()
            print(f"backup: {seconds:.1f} s, {backup.stat().st_size // MIB} MiB; lookups meanwhile {statistics.median(times):.1f} ms "
                  f"(median), {max(times):.0f} ms at most; gateway {first.peak_memory()} MiB at most", flush=True)
            if arguments.store == "embedded":
                file = folder / "first/keygate.redb"
                before = file.stat().st_size
                seconds = run(binary, first.config, "store", "compact")
                print(f"compaction: {seconds:.1f} s, {before // MIB} to {file.stat().st_size // MIB} MiB; gateway "
                      f"{first.peak_memory()} MiB at most", flush=True)
            for store in ("embedded", "redis"):
                again = Gateway(binary, folder / f"again-{store}", store, restored_from=backup)
                running.append(again)
                again.connect()
                for number in random.Random(1).sample(range(arguments.keys), arguments.samples):
                    again.look_up(number)
                print(f"{store}: restored in {again.restored_in:.1f} s, ready {again.started_in:.1f} s after its start; "
                      f"{arguments.samples} keys of a sample open", flush=True)
        finally:
            for gateway in running:
                gateway.stop()


if __name__ == "__main__":
    main()
