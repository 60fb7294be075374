"""The network that the bare engine's and Sealift's containers share: user-defined, as compose projects have them.

One for all, because an engine has addresses for some thirty networks only.
"""

import time

from engine_api import Engine, EngineError

# How long the engine may take to let go of containers that are gone.
LET_GO_S = 20


class Network:
    """A bridge network of the benchmark."""

    def __init__(self, name):
        self.name = name
        self.made = False

    def create(self):
        Engine().call("POST", "/networks/create", {"Name": self.name, "CheckDuplicate": True})
        self.made = True

    def destroy(self):
        if not self.made:
            return
        until = time.monotonic() + LET_GO_S
        while True:
            try:
                Engine().call("DELETE", f"/networks/{self.name}")
                return
            except EngineError as error:
                # 403: a container that was removed a moment ago still counts as one of the network.
                if error.status != 403 or time.monotonic() > until:
                    raise
                time.sleep(0.5)
