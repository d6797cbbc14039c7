#!/usr/bin/env python3
"""The cost of a million keys: the import, and then a lookup and a creation, compared with a store of a thousand keys.

Two gateways run at the same time, one with few keys and one with many, each with its own store. Requests alternate between them,
one at a time. Every lookup is of a key that its gateway has not cached. A lookup ends in 403 (the key lacks the
route's scope), so no upstream takes part. Memory is the gateway's VmHWM, from /proc.

Needs Debian's package redis-server, and `cargo build --profile dist`. It uses loopback only, and ends by itself.

    python3 benches/keys.py [--store redis] [--keys 1000000] [--few 1000] [--samples 800]
"""

import argparse
import pathlib
import random
import statistics
import tempfile

from common import DIST, Gateway, write_lines


def compare(what, few, many, rounds):
    """Measures both alternately, and also alternates which of them is first."""
    times = {few: [], many: []}
    for number, (of_few, of_many) in enumerate(rounds):
        pair = [(few, of_few), (many, of_many)]
        for gateway, argument in pair if number % 2 else reversed(pair):
            times[gateway].append(getattr(gateway, what)(argument) * 1e6)
    figures = []
    for gateway in (few, many):
        parts = statistics.quantiles(times[gateway], n=10)
        figures.append((statistics.median(times[gateway]), parts[0], parts[8]))
    (a, a10, a90), (b, b10, b90) = figures
    print(f"{what:8}  few {a:6.0f} us (p10 {a10:.0f}, p90 {a90:.0f})   many {b:6.0f} us (p10 {b10:.0f}, p90 {b90:.0f})   "
          f"ratio of medians {b / a:.2f}, of p10 {b10 / a10:.2f}, of p90 {b90 / a90:.2f}", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--store", choices=["embedded", "redis"], default="redis")
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--few", type=int, default=1_000)
    arguments.add_argument("--samples", type=int, default=800)
    arguments.add_argument("--keygate", default=DIST)
    arguments = arguments.parse_args()
    arguments.samples = min(arguments.samples, arguments.few)

    running = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_lines(folder / "few.jsonl", arguments.few)
        write_lines(folder / "many.jsonl", arguments.keys)
        try:
            for name in ("few", "many"):
                gateway = Gateway(arguments.keygate, folder / name, arguments.store)
                running.append(gateway)
                before = gateway.peak_memory()
                moved, seconds = gateway.move_in(folder / f"{name}.jsonl")
                print(f"{arguments.store}: {moved} keys imported in {seconds:.1f} s; peak memory of the gateway "
                      f"{before} MiB before, {gateway.peak_memory()} MiB after", flush=True)
            few, many = running
            for gateway in running:
                gateway.connect()
            draw = random.Random(1)
            compare("look_up", few, many, zip(draw.sample(range(arguments.few), arguments.samples),
                                             draw.sample(range(arguments.keys), arguments.samples)))
            compare("create", few, many, [(n, n) for n in range(arguments.samples)])
        finally:
            for gateway in running:
                gateway.stop()


main()
