"""The few Docker HTTP API calls of the benchmark, over the engine's own socket, with the standard library only."""

import http.client
import json
import os
import socket
import urllib.parse

TIMEOUT_S = 60


class EngineError(Exception):
    """The engine answered with an error status."""

    def __init__(self, status, method, path, body):
        super().__init__(f"{method} {path}: {status} {body.strip()}")
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """One kept-alive connection; use one per thread."""

    def __init__(self):
        host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        kind, _, rest = host.partition("://")
        if kind == "unix":
            self._connection = _UnixConnection(rest)
        elif kind in ("tcp", "http"):
            self._connection = http.client.HTTPConnection(rest.rstrip("/"), timeout=TIMEOUT_S)
        else:
            raise SystemExit(f"error: cannot speak to DOCKER_HOST={host}; use unix:// or tcp://")

    def call(self, method, path, body=None, **query):
        if query:
            path += "?" + urllib.parse.urlencode(query)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        # 304: already started or stopped, which is what was wanted.
        if answer.status >= 400:
            raise EngineError(answer.status, method, path, text)
        return json.loads(text) if text and "json" in answer.getheader("Content-Type", "") else None

    def create(self, name, image, labels, network):
        host = {"RestartPolicy": {"Name": "always"}, "NetworkMode": network}
        body = {"Image": image, "Labels": labels, "HostConfig": host}
        return self.call("POST", "/containers/create", body, name=name)["Id"]

    def start(self, container):
        self.call("POST", f"/containers/{container}/start")

    def stop(self, container):
        self.call("POST", f"/containers/{container}/stop", t=10)

    def inspect(self, container):
        return self.call("GET", f"/containers/{container}/json")

    def remove(self, container):
        self.call("DELETE", f"/containers/{container}", force="true", v="true")

    def labelled(self, label):
        filters = json.dumps({"label": [label]})
        return self.call("GET", "/containers/json", all="true", filters=filters)
