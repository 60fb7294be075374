"""Sealift doing the swaps: one orchestrator on SQLite and N targets of one agent, as on any host with one engine.

A command for `--sealift-cmd` of the benchmark; README.md beside this file says how it is called. The seconds on standard
output run from just before `sealift promote` is started to the finish time of the promotion; the details, from the
orchestrator's own timestamps, go to standard error. SEALIFT_BENCH_KEEP=DIR keeps all logs and the evidence there.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 120
POLL_S = 0.05
ENVIRONMENT = "bench"
PROJECT = "example.com/acme/shop/web"
# Joining costs a few processes each; more at once do not end sooner on a small machine.
JOINS_AT_ONCE = 4


def binaries():
    if folder := os.environ.get("SEALIFT_BENCH_BIN_DIR"):
        return Path(folder)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / os.environ.get("SEALIFT_BENCH_PROFILE", "release")


def until(what, check):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := check()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {PATIENCE_S} s: {what}")
        time.sleep(POLL_S)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def seconds(text):
    """A proto JSON timestamp as seconds since 1970; Python 3.10 and older read no more than six digits of a fraction."""
    whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
    moment = datetime.fromisoformat(whole + "+00:00").timestamp()
    return moment + float("0." + fraction) if fraction else moment


def log_level():
    return os.environ.get("SEALIFT_BENCH_LOG", "info")


def engine_socket():
    """The agents use the engine that the other ways use."""
    host = os.environ.get("DOCKER_HOST")
    return {"SEALIFT_AGENT_ENGINE_SOCKET": host} if host else {}


def compose_file(image, services, network=None):
    lines = ["services:"]
    for service in services:
        lines += [f"  {service}:", f"    image: {image}", "    restart: always", "    stop_grace_period: 10s"]
        if network:
            lines += ["    networks: [shared]"]
    if network:
        lines += ["networks:", "  shared:", "    external: true", f"    name: {network}"]
    return "\n".join(lines) + "\n"


class System:
    """Everything that is started and made; `end` takes all of it away."""

    def __init__(self, folder, count, kind="docker-host", compose=None, agents=1):
        """Targets of so many agents, which use the program `compose` for compose hosts, or what they find."""
        self.folder, self.bin, self.kind = folder, binaries(), kind
        self.agent_environment = {"SEALIFT_AGENT_LOG_LEVEL": log_level(), **engine_socket()}
        if compose:
            settings = folder / "agent.toml"
            settings.write_text(f'[compose]\nprogram = "{compose}"\n', encoding="utf-8")
            self.agent_environment["SEALIFT_AGENT_CONFIG"] = str(settings)
        self.endpoint = f"https://127.0.0.1:{free_port()}"
        self.targets = [f"{ENVIRONMENT}/web-{number:03}" for number in range(1, count + 1)]
        self.agents = [self.targets[number::agents] for number in range(agents)]
        self.processes = []

    def run(self, program, *arguments, text=None):
        environment = {key: value for key, value in os.environ.items() if key not in ("SEALIFT_CONTEXT", "SEALIFT_ENDPOINT")}
        environment["SEALIFT_CONTEXT_FILE"] = str(self.folder / "ada" / "context.toml")
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)],
            env=environment, input=text, capture_output=True, text=True, timeout=PATIENCE_S * 5, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(map(str, arguments[:3]))} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def sealift(self, *arguments):
        return json.loads(self.run("sealift", *arguments, "-o", "json") or "null")

    def spawn(self, name, program, *arguments, environment=None):
        log = self.folder / f"{name}.log"
        with open(log, "wb") as file:
            # A session of its own: an interrupt must reach this program first, which then ends it in order.
            process = subprocess.Popen(
                [self.bin / program, *map(str, arguments)], env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start(self):
        data = self.folder / "orchestrator"
        listen = self.endpoint.removeprefix("https://")
        server = self.spawn(
            "orchestrator", "sealift-orchestrator", "serve", "--data-dir", data, "--listen", listen,
            environment={"RUST_LOG": log_level()},
        )  # fmt: skip

        def listens():
            if server.poll() is not None:
                raise RuntimeError("the orchestrator ended: " + (self.folder / "orchestrator.log").read_text()[-2000:])
            return (data / "admin.sock").exists()

        until("the orchestrator listens", listens)
        self.run(
            "sealift-orchestrator", "admin", "--data-dir", data, "issue", "ada", "--role", "admin",
            "--endpoint", self.endpoint, "--out", self.folder / "ada",
        )  # fmt: skip
        self.sealift("env", "create", ENVIRONMENT, "--position", 10)
        with ThreadPoolExecutor(max_workers=JOINS_AT_ONCE) as pool:
            list(pool.map(self._agent, self.agents))
        until("all agents are online", self._all_online)

    def state(self, targets):
        """The folder of the agent of these targets."""
        return self.folder / "agents" / targets[0]

    def _agent(self, targets):
        state = self.state(targets)
        state.mkdir(parents=True, mode=0o700)
        for number, target in enumerate(targets):
            self.run("sealift", "target", "create", target, "--kind", self.kind)
            token = self.run("sealift", "target", "token", target)
            more = ["--add-target"] if number else []
            self.run(
                "sealift-agent", "join", "--state-dir", state, "--orchestrator", self.endpoint, "--token-stdin", *more, text=token
            )  # fmt: skip
        self.spawn(
            f"agent-{targets[0].rpartition('/')[2]}", "sealift-agent", "run", "--state-dir", state,
            "--orchestrator", self.endpoint, environment=self.agent_environment,
        )  # fmt: skip

    def _all_online(self):
        found = self.run("sealift", "agent", "list", "-o", "json")
        return found.count('"STATUS_ONLINE"') >= len(self.agents)

    def release(self, image, number):
        text = compose_file(image, ["web"], os.environ.get("SEALIFT_BENCH_NETWORK"))
        return self.release_of(text, number)

    def release_of(self, text, number):
        file = self.folder / f"compose-{number}.yaml"
        file.write_text(text, encoding="utf-8")
        source = f"{PROJECT}@{number:040x}"
        return self.sealift("release", "create", "--kind", self.kind, "-f", file, "--source", source)["number"]

    def promote(self, release, min_healthy, concurrency):
        """Promotes to all targets; the seconds from the start of the command to success, and the promotion."""
        rolling = ["--rolling", concurrency] if concurrency < len(self.targets) else []
        began = time.time()
        promotion = self.sealift(
            "promote", f"shop/web#{release}", "--to", ENVIRONMENT, "--wait", "--timeout", "14m",
            "--min-healthy", f"{round(min_healthy * 1000)}ms", *rolling,
        )  # fmt: skip
        returned = time.time() - began
        return seconds(promotion["finishTime"]) - began, returned, promotion

    def end(self):
        """Orderly at first: an agent that is cut off leaves an attempt in its journal, which is nothing to wait for here."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 40
        for process in self.processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        joined = [state for state in map(self.state, self.agents) if state.exists()]
        with ThreadPoolExecutor(max_workers=JOINS_AT_ONCE) as pool:
            list(pool.map(lambda state: self.run("sealift-agent", "purge", "--yes", "--state-dir", state), joined))


def interrupted(number, _):
    # As an exception, so that the clean-up runs.
    raise SystemExit(128 + number)


def main():
    count, concurrency = (int(os.environ[f"SEALIFT_BENCH_{name}"]) for name in ("CONTAINERS", "CONCURRENCY"))
    min_healthy = float(os.environ["SEALIFT_BENCH_MIN_HEALTHY"])
    signal.signal(signal.SIGTERM, interrupted)
    folder = Path(tempfile.mkdtemp(prefix="sealift-bench-"))
    system = System(folder, count, agents=int(os.environ.get("SEALIFT_BENCH_AGENTS", "1")))
    try:
        system.start()
        before = system.release(os.environ["SEALIFT_BENCH_FROM"], 1)
        after = system.release(os.environ["SEALIFT_BENCH_TO"], 2)
        system.promote(before, 0, count)
        took, returned, promotion = system.promote(after, min_healthy, concurrency)
        own = seconds(promotion["finishTime"]) - seconds(promotion["createTime"])
        print(f"    sealift: {took:.2f} s; orchestrator's own times {own:.2f} s, command {returned:.2f} s", file=sys.stderr)
        if kept := os.environ.get("SEALIFT_BENCH_KEEP"):
            system.sealift("evidence", "export", "--out", Path(kept) / "evidence")
            for log in folder.glob("*.log"):
                shutil.copy(log, kept)
    finally:
        try:
            system.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{took:.3f}")


if __name__ == "__main__":
    main()
