"""The bare engine doing the swaps: what any orchestrator on this engine can at best come near to."""

import time
from concurrent.futures import ThreadPoolExecutor

from engine_api import Engine

HEALTHY_WITHIN_S = 60
POLL_S = 0.02


class RawFleet:
    """N containers named by slot; `swap` replaces each by one from another image."""

    def __init__(self, count, run_id, network):
        self.network = network
        self.label = f"sealift.bench={run_id}-raw"
        self.run_id = run_id
        self.count = count
        self.generation = 0
        self.current = [None] * count

    def create(self, image):
        engine = Engine()
        for slot in range(self.count):
            self.current[slot] = engine.create(self._name(slot), image, self._labels(), self.network)
            engine.start(self.current[slot])

    def swap(self, image, min_healthy, concurrency):
        """Swaps every container, at most `concurrency` at once, and returns the seconds it took."""
        self.generation += 1
        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=concurrency) as pool:
            self.current = list(pool.map(lambda slot: self._swap_one(slot, image, min_healthy), range(self.count)))
        return time.monotonic() - started

    def _swap_one(self, slot, image, min_healthy):
        engine, old = Engine(), self.current[slot]
        new = engine.create(self._name(slot), image, self._labels(), self.network)
        engine.stop(old)
        engine.start(new)
        wait_healthy(engine, new)
        time.sleep(min_healthy)
        state = engine.inspect(new)
        if not is_healthy(state) or state["RestartCount"]:
            raise RuntimeError(f"container {new[:12]} did not stay healthy")
        engine.remove(old)
        return new

    def destroy(self):
        engine = Engine()
        for container in engine.labelled(self.label):
            engine.remove(container["Id"])

    def _name(self, slot):
        return f"sealift-bench-{self.run_id}-{slot}-{self.generation}"

    def _labels(self):
        key, value = self.label.split("=", 1)
        return {key: value}


def is_healthy(inspected):
    state = inspected["State"]
    return state["Running"] and (state.get("Health") or {}).get("Status", "healthy") == "healthy"


def wait_healthy(engine, container):
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    while not is_healthy(engine.inspect(container)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"container {container[:12]} not healthy after {HEALTHY_WITHIN_S} s")
        time.sleep(POLL_S)
