"""Driver of the compose benchmark; start it through `run`, which makes the images. README.md says what is measured."""

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# What makes Sealift work is the same as in the swap benchmark.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "swap"))

from sealift import System, compose_file, interrupted  # noqa: E402
from time import monotonic  # noqa: E402

# P2: an update by Sealift may take so many times what the same by hand takes, less the waiting for min_healthy.
GOAL = 1.15
COMMAND_WITHIN_S = 120


def arguments():
    about = "Seconds to update a compose project: docker-compose by hand, Sealift."
    parser = argparse.ArgumentParser(description=about, prog="tests/bench/compose/run", allow_abbrev=False)
    parser.add_argument("--compose", choices=["v1", "v2"], default="v1", help="whose Compose both sides use (default v1)")
    parser.add_argument("--services", default="1,3", metavar="N,N", help="services of the project (default 1,3)")
    parser.add_argument("--min-healthy", type=float, default=2, metavar="W", help="seconds a container must stay healthy (default 2)")
    parser.add_argument("--repeat", type=int, default=7, metavar="R", help="repetitions, the table shows medians (default 7)")
    parser.add_argument("--smoke", action="store_true", help="one service, once, to see that it works")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--image1", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--image2", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.services = [int(number) for number in options.services.split(",")]
    if options.smoke:
        options.services, options.repeat, options.min_healthy = [1], 1, 1
    return options


def by_digest(reference):
    """repository:tag@digest as repository@digest, which every engine finds without asking the registry."""
    name, digest = reference.split("@")
    return f"{name.rsplit(':', 1)[0]}@{digest}"


class ByHand:
    """A project that somebody updates with Compose."""

    def __init__(self, folder, program):
        self.file = folder / "compose.yaml"
        self.program = program
        self.project = f"sealift-bench-{secrets.token_hex(4)}"

    def compose(self, *arguments):
        command = [self.program, "-p", self.project, "-f", str(self.file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_WITHIN_S, check=False)
        if done.returncode:
            raise RuntimeError(f"compose {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")

    def resolve(self):
        """Seconds until Compose has read the file and written it out resolved, which nothing else is asked for."""
        began = monotonic()
        self.compose("config")
        return monotonic() - began

    def update(self, text):
        """Seconds until Compose has replaced the containers and returned."""
        self.file.write_text(text, encoding="utf-8")
        began = monotonic()
        self.compose("up", "-d")
        return monotonic() - began

    def end(self):
        if self.file.exists():
            self.compose("down", "--timeout", "1")


def measure(options, services):
    """Both ways take turns; each update changes the image of every service."""
    files = [compose_file(by_digest(image), services) for image in (options.image1, options.image2)]
    folder = Path(tempfile.mkdtemp(prefix="sealift-bench-"))
    system, hand = System(folder, 1, "compose-host", options.program), ByHand(folder, options.program)
    by_hand, by_sealift, resolving = [], [], []
    try:
        system.start()
        releases = [system.release_of(text, number) for number, text in enumerate(files, 1)]
        hand.update(files[0])
        system.promote(releases[0], 0, 1)
        for repetition in range(1, options.repeat + 1):
            now = repetition % 2
            by_hand.append(hand.update(files[now]))
            resolving.append(hand.resolve())
            took, _, _ = system.promote(releases[now], options.min_healthy, 1)
            by_sealift.append(took - options.min_healthy)
            print(f"  {len(services)} services: by hand {by_hand[-1]:.2f} s, sealift {by_sealift[-1]:.2f} s", file=sys.stderr)
    finally:
        try:
            hand.end()
        finally:
            try:
                system.end()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return by_hand, by_sealift, resolving


def report(options, rows):
    print(f"\nupdate of a compose project, medians of {options.repeat}, less min_healthy ({options.min_healthy:g} s), {os.cpu_count()} CPUs\n")
    print(f"{'services':>8} {'by hand s':>10} {'sealift s':>10} {'ratio':>6} {'config s':>9}")
    for row in rows:
        print(f"{row['services']:>8} {row['by_hand']:>10.2f} {row['sealift']:>10.2f} {row['ratio']:>6.2f} {row['config']:>9.2f}")
    print()
    for row in rows:
        met = "met" if row["ratio"] <= GOAL else "missed"
        print(f"P2 {row['services']} services: {row['ratio']:.2f} x Compose {options.compose}'s up -d, goal <= {GOAL:.2f}: {met}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"compose": options.compose, "min_healthy_s": options.min_healthy, "repetitions": options.repeat, "goal": GOAL, "rows": rows}, file, indent=2)


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    rows = []
    for count in options.services:
        by_hand, by_sealift, resolving = measure(options, [f"web{number}" for number in range(1, count + 1)])
        hand, ours = statistics.median(by_hand), statistics.median(by_sealift)
        rows.append({
            "services": count, "by_hand": hand, "sealift": ours, "ratio": ours / hand,
            "config": statistics.median(resolving),
            "by_hand_s": by_hand, "sealift_s": by_sealift, "config_s": resolving,
        })  # fmt: skip
    report(options, rows)


main()
