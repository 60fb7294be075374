"""Docker Swarm doing the swaps: one service with N replicas, updated stop-first by `docker service update`."""

import json
import subprocess
import time

from engine_api import Engine, EngineError

CONVERGE_WITHIN_S = 300
POLL_S = 0.02


def docker(*arguments):
    """Runs the docker command line, returns its output; its error text is the exception's."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=CONVERGE_WITHIN_S, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments[:3])} …: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Swarm:
    """A swarm of this one engine; left again if it was made here."""

    def __init__(self, count, run_id, network):
        self.count = count
        self.name = f"sealift-bench-{run_id}"
        self.network = network
        self.engine = Engine()
        self.made = False
        self.networks_before = set()

    def create(self, image, min_healthy):
        self.networks_before = self._networks()
        if self.engine.call("GET", "/info")["Swarm"]["LocalNodeState"] == "inactive":
            docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
            self.made = True
        network = ["--network", self.network] if self.network else []
        docker(
            "service", "create", "--detach", "--quiet", "--name", self.name, "--replicas", str(self.count),
            "--no-resolve-image", "--update-order", "stop-first", "--update-failure-action", "pause",
            "--update-monitor", f"{min_healthy}s", "--stop-grace-period", "10s", *network, image,
        )  # fmt: skip
        self._wait_running(image)

    def swap(self, image, min_healthy, parallelism):
        """Updates the service, `parallelism` tasks at once (0 = all), and returns two durations in seconds: until the
        service says the update is completed, and until the foreground command line returned, which verifies longer."""
        before = self._service().get("UpdateStatus", {}).get("StartedAt")
        started = time.monotonic()
        cli = subprocess.Popen(
            ["docker", "service", "update", "--detach=false", "--quiet", "--no-resolve-image", "--image", image,
             "--update-parallelism", str(parallelism), "--update-monitor", f"{min_healthy}s", self.name],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            completed = self._wait_completed(before, started)
            _, error = cli.communicate(timeout=CONVERGE_WITHIN_S)
        finally:
            if cli.poll() is None:
                cli.kill()
                cli.wait()
        if cli.returncode:
            raise RuntimeError(f"docker service update: {error.strip()}")
        returned = time.monotonic() - started
        self._wait_running(image)
        return completed, returned

    def destroy(self):
        if self._exists():
            docker("service", "rm", self.name)
            self._wait_no_containers()
        if self.made:
            docker("swarm", "leave", "--force")
        for name in self._networks() - self.networks_before:
            if name == "docker_gwbridge":
                docker("network", "rm", name)

    def _networks(self):
        return {network["Name"] for network in self.engine.call("GET", "/networks")}

    def _service(self):
        return self.engine.call("GET", f"/services/{self.name}")

    def _exists(self):
        try:
            self._service()
            return True
        except EngineError as error:
            if error.status in (404, 503):
                return False
            raise

    def _wait_completed(self, before, started):
        deadline = started + CONVERGE_WITHIN_S
        while time.monotonic() < deadline:
            status = self._service().get("UpdateStatus") or {}
            if status.get("StartedAt") != before:
                if status.get("State") == "completed":
                    return time.monotonic() - started
                if status.get("State") == "paused":
                    raise RuntimeError(f"swarm paused the update: {status.get('Message')}")
            time.sleep(POLL_S)
        raise RuntimeError(f"swarm did not complete the update in {CONVERGE_WITHIN_S} s")

    def _tasks(self):
        filters = json.dumps({"service": [self.name], "desired-state": ["running"]})
        return self.engine.call("GET", "/tasks", filters=filters)

    def _wait_running(self, image):
        deadline = time.monotonic() + CONVERGE_WITHIN_S
        tasks = []
        while time.monotonic() < deadline:
            tasks = self._tasks()
            running = [
                task for task in tasks
                if task["Status"]["State"] == "running" and task["Spec"]["ContainerSpec"]["Image"] == image
            ]  # fmt: skip
            if len(running) == self.count:
                return
            time.sleep(POLL_S)
        errors = sorted({task["Status"].get("Err") or task["Status"]["State"] for task in tasks})
        raise RuntimeError(f"swarm did not get {self.count} tasks running: {'; '.join(errors)}")

    def _wait_no_containers(self):
        deadline = time.monotonic() + 60
        label = f"com.docker.swarm.service.name={self.name}"
        while self.engine.labelled(label) and time.monotonic() < deadline:
            time.sleep(0.1)
        for container in self.engine.labelled(label):
            self.engine.remove(container["Id"])
