"""Driver of the swap benchmark; start it through `run`, which makes the images. README.md says what is measured."""

import argparse
import json
import math
import os
import secrets
import shlex
import signal
import statistics
import subprocess
import sys
import time

from engine_api import Engine
from network import Network
from raw import RawFleet
from swarm import Swarm

SEALIFT_WITHIN_S = 900
OWN_COMMAND = f"exec {shlex.quote(sys.executable)} {shlex.quote(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'sealift.py'))}"
# At most so many times the bare engine, and so many times Swarm: by the number of containers, all at once.
GOAL_TO_ENGINE = 1.10
GOALS_TO_SWARM = {1: 0.15, 10: 0.5}


def arguments():
    parser = argparse.ArgumentParser(description="Seconds to swap N containers on one engine: bare engine, Swarm, Sealift.")
    parser.add_argument("--containers", type=int, default=10, metavar="N", help="containers (default 10)")
    parser.add_argument("--rolling", type=int, default=1, metavar="K", help="how many at once in the rolling mode (default 1)")
    parser.add_argument("--min-healthy", type=float, default=2, metavar="W", help="seconds a container must stay healthy (default 2)")
    parser.add_argument("--repeat", type=int, default=3, metavar="R", help="repetitions, the table shows medians (default 3)")
    parser.add_argument("--variant", default="plain", help="demo image: plain (no HEALTHCHECK, default) or ok (with one)")
    parser.add_argument("--swarm-network", default="", help="network of the Swarm service (default: none given, e.g. host)")
    parser.add_argument("--without-swarm", action="store_true", help="leave Swarm out")
    parser.add_argument("--without-sealift", action="store_true", help="leave Sealift out")
    parser.add_argument(
        "--sealift-cmd", metavar="CMD", default=OWN_COMMAND, help="command that makes Sealift swap and prints seconds (default: sealift.py)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too (- for standard output)")
    parser.add_argument("--image1", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--image2", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.containers < 1 or options.repeat < 1 or not 1 <= options.rolling <= options.containers:
        parser.error("needs N >= 1, R >= 1 and 1 <= K <= N")
    return options


def by_digest(reference):
    """repository:tag@digest as repository@digest, which every engine finds without asking the registry."""
    name, digest = reference.split("@")
    return f"{name.rsplit(':', 1)[0]}@{digest}"


def sealift(options, concurrency, source, target, repetition, network):
    environment = {
        **os.environ,
        "SEALIFT_BENCH_CONTAINERS": str(options.containers),
        "SEALIFT_BENCH_CONCURRENCY": str(concurrency),
        "SEALIFT_BENCH_MIN_HEALTHY": str(options.min_healthy),
        "SEALIFT_BENCH_FROM": source,
        "SEALIFT_BENCH_TO": target,
        "SEALIFT_BENCH_REPETITION": str(repetition),
        "SEALIFT_BENCH_NETWORK": network,
    }
    done = subprocess.run(
        options.sealift_cmd, shell=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=SEALIFT_WITHIN_S, check=False
    )
    lines = done.stdout.split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        if done.returncode == 0:
            return float(last)
    except ValueError:
        pass
    raise RuntimeError(f"--sealift-cmd ended with {done.returncode}; its last line is not a number of seconds: {last!r}")


def measure(options):
    """All repetitions, the ways taken in turn so that a busy moment of the machine does not hit one of them alone."""
    run_id, images = secrets.token_hex(4), [by_digest(options.image1), by_digest(options.image2)]
    count, rolling, wait = options.containers, options.rolling, options.min_healthy
    samples, skipped, fleets = {}, {}, []

    def add(way, mode, seconds):
        samples.setdefault((way, mode), []).append(seconds)
        print(f"  {way:<16} {mode:<12} {seconds:7.2f} s", file=sys.stderr)

    network = Network(f"bench-{run_id}")
    raw, swarm = RawFleet(count, run_id, network.name), None
    try:
        fleets.append(network)
        network.create()
        fleets.append(raw)
        raw.create(images[0])
        if not options.without_swarm:
            swarm = Swarm(count, run_id, options.swarm_network)
            fleets.append(swarm)
            try:
                swarm.create(images[0], wait)
            except RuntimeError as error:
                skipped["swarm"] = str(error)
                print(f"  Swarm left out: {error}", file=sys.stderr)
                swarm = None
        now = 0
        for repetition in range(1, options.repeat + 1):
            print(f"repetition {repetition} of {options.repeat}", file=sys.stderr)
            for mode, concurrency in (("all at once", count), (f"rolling {rolling}", rolling)):
                source, target = images[now], images[1 - now]
                add("engine", mode, raw.swap(target, wait, concurrency))
                if swarm:
                    completed, returned = swarm.swap(target, wait, 0 if concurrency == count else concurrency)
                    add("swarm", mode, completed)
                    add("swarm command", mode, returned)
                if not options.without_sealift:
                    add("sealift", mode, sealift(options, concurrency, source, target, repetition, network.name))
                now = 1 - now
    finally:
        for fleet in reversed(fleets):
            try:
                fleet.destroy()
            except (OSError, RuntimeError) as error:
                print(f"warning: clean-up: {error}", file=sys.stderr)
    return samples, skipped


def waits(way, mode, options):
    """Seconds of pure waiting for `min_healthy` that the way cannot avoid; Swarm watches only after its last task."""
    if way.startswith("swarm") or mode == "all at once":
        return options.min_healthy
    return options.min_healthy * math.ceil(options.containers / options.rolling)


def report(options, samples, skipped):
    rows = []
    for (way, mode), seconds in samples.items():
        median = statistics.median(seconds)
        rows.append({"way": way, "mode": mode, "seconds": seconds, "median": median, "net": median - waits(way, mode, options)})
    net = {(row["way"], row["mode"]): row["net"] for row in rows}
    for row in rows:
        base, swarm = net.get(("engine", row["mode"])), net.get(("swarm", row["mode"]))
        row["to_engine"] = row["net"] / base if base and base > 0 else None
        row["to_swarm"] = row["net"] / swarm if swarm and swarm > 0 else None
    engine = Engine().call("GET", "/version")
    head = {
        "containers": options.containers, "rolling": options.rolling, "min_healthy_s": options.min_healthy,
        "repetitions": options.repeat, "variant": options.variant, "engine": engine["Version"],
        "cpus": os.cpu_count(), "skipped": skipped, "rows": rows,
    }  # fmt: skip
    out = sys.stderr if options.json == "-" else sys.stdout
    head["goals"] = {"to_engine": GOAL_TO_ENGINE, "to_swarm": GOALS_TO_SWARM.get(options.containers)}
    print(
        f"\n{options.containers} containers, min_healthy {options.min_healthy:g} s, medians of {options.repeat}, "
        f"image variant {options.variant}, engine {engine['Version']}, {os.cpu_count()} CPUs\n",
        file=out,
    )
    print(f"{'way':<16} {'mode':<12} {'total s':>8} {'min':>7} {'max':>7} {'less wait':>10} {'/ engine':>9} {'/ swarm':>8}", file=out)
    for row in sorted(rows, key=lambda row: row["mode"]):
        ratios = [f"{value:.2f}" if value is not None else "-" for value in (row["to_engine"], row["to_swarm"])]
        print(
            f"{row['way']:<16} {row['mode']:<12} {row['median']:>8.2f} {min(row['seconds']):>7.2f} {max(row['seconds']):>7.2f} "
            f"{row['net']:>10.2f} {ratios[0]:>9} {ratios[1]:>8}",
            file=out,
        )
    goals(options, rows, out)
    for way, reason in skipped.items():
        print(f"{way}: left out: {reason}", file=out)
    if options.json == "-":
        json.dump(head, sys.stdout, indent=2)
        print()
    elif options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(head, file, indent=2)


def goals(options, rows, out):
    """Sealift's ratios beside what they should be."""
    for row in sorted((row for row in rows if row["way"] == "sealift"), key=lambda row: row["mode"]):
        wanted = [("the bare engine", row["to_engine"], GOAL_TO_ENGINE)]
        if row["mode"] == "all at once":
            wanted.append(("Swarm", row["to_swarm"], GOALS_TO_SWARM.get(options.containers)))
        for other, ratio, goal in wanted:
            if ratio is not None and goal is not None:
                met = "met" if ratio <= goal else "missed"
                print(f"sealift {row['mode']}: {ratio:.2f} x {other}, goal <= {goal:.2f}: {met}", file=out)


def interrupted(number, _):
    # As an exception, so that the clean-up of `measure` runs.
    raise SystemExit(128 + number)


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    started = time.monotonic()
    samples, skipped = measure(options)
    report(options, samples, skipped)
    print(f"\nmeasured in {time.monotonic() - started:.0f} s", file=sys.stderr)


main()
