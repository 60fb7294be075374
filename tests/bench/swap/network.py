"""The network that the bare engine's and Sealift's containers share: user-defined, as compose projects have them.

One for all, because an engine has addresses for some thirty networks only.
"""

from engine_api import Engine


class Network:
    """A bridge network of the benchmark."""

    def __init__(self, name):
        self.name = name
        self.made = False

    def create(self):
        Engine().call("POST", "/networks/create", {"Name": self.name, "CheckDuplicate": True})
        self.made = True

    def destroy(self):
        if self.made:
            Engine().call("DELETE", f"/networks/{self.name}")
