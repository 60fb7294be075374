"""A client that knows nothing of ours: grpcio and the reflection service only, no generated code.

Usage: reflection_client.py HOST:PORT FOLDER RELEASE ENVIRONMENT

FOLDER holds what `sealift-orchestrator admin issue` wrote for the users `ada` (admin), `ci` (ci) and `olga` (observer).
Lists environments, requests a promotion as `ci`, and checks that callers without a certificate or with the wrong role are
refused with details. Prints what it saw; exits non-zero when anything is not as it should be.
"""

import pathlib
import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

DEADLINE = 20


class Client:
    """One channel, and calls by name over descriptors that reflection gave."""

    def __init__(self, address, ca, identity=None):
        key, chain = (None, None)
        if identity:
            name = identity.name
            key, chain = (identity / f"{name}.key").read_bytes(), (identity / f"{name}.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(ca, private_key=key, certificate_chain=chain)
        self.channel = grpc.secure_channel(address, credentials)

    def learn(self):
        """Asks reflection for everything that this client will speak."""
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.services = sorted(database.get_services())
        self.pool = descriptor_pool.DescriptorPool(database)
        return self

    def call(self, method, body, pool=None):
        """Calls `package.Service/Method` with a body of proto JSON; answers with proto JSON."""
        service, name = method.split("/")
        descriptor = (pool or self.pool).FindServiceByName(service).FindMethodByName(name)
        request = message_factory.GetMessageClass(descriptor.input_type)()
        answer = message_factory.GetMessageClass(descriptor.output_type)
        json_format.ParseDict(body, request)
        call = self.channel.unary_unary(
            f"/{method}", request_serializer=lambda message: message.SerializeToString(), response_deserializer=answer.FromString
        )
        return json_format.MessageToDict(call(request, timeout=DEADLINE))


def details(error):
    """All google.rpc details of an error, by type."""
    found = {}
    for packed in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.PreconditionFailure):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


def refused(what, code, reason, action):
    """The action must be refused with this code and reason."""
    try:
        action()
    except grpc.RpcError as error:
        info = details(error).get("ErrorInfo")
        assert error.code() == code, f"{what}: {error.code()} {error.details()}"
        assert info and info.reason == reason and info.domain, f"{what}: {info}"
        print(f"{what}: {error.code().name} {info.reason}: {error.details()}")
        return error
    raise AssertionError(f"{what}: was not refused")


def main(address, folder, release, environment):
    folder = pathlib.Path(folder)
    ca = (folder / "ada" / "ca.pem").read_bytes()
    ci = Client(address, ca, folder / "ci").learn()
    print("services:", ", ".join(ci.services))
    assert "sealift.v1.PromotionService" in ci.services and "grpc.health.v1.Health" in ci.services

    health = ci.call("grpc.health.v1.Health/Check", {"service": ""})
    assert health["status"] == "SERVING", health
    environments = ci.call("sealift.v1.EnvironmentService/ListEnvironments", {})["environments"]
    print("environments:", ", ".join(row["name"] for row in environments))
    assert any(row["name"] == f"environments/{environment}" for row in environments)

    request = {
        "requestId": str(uuid.uuid4()),
        "release": f"releases/{release}",
        "environment": f"environments/{environment}",
        "recipe": {"limits": {"minHealthy": "1s"}},
    }
    promotion = ci.call("sealift.v1.PromotionService/CreatePromotion", request)["promotion"]
    print("promotion:", promotion["name"], promotion["state"])
    assert promotion["state"] in ("STATE_APPROVED", "STATE_DEPLOYING", "STATE_DEPLOYED"), promotion
    again = ci.call("sealift.v1.PromotionService/CreatePromotion", request)["promotion"]
    assert again["name"] == promotion["name"], "the same request id gave another promotion"
    other = dict(request, changeSummary="another body")
    refused(
        "same request id, other body",
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
        lambda: ci.call("sealift.v1.PromotionService/CreatePromotion", other),
    )

    create = "sealift.v1.EnvironmentService/CreateEnvironment"
    body = {"requestId": str(uuid.uuid4()), "environmentId": "mine", "environment": {"position": 99}}
    refused("ci makes an environment", grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING", lambda: ci.call(create, body))
    observer = Client(address, ca, folder / "olga")
    refused(
        "an observer promotes",
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_MISSING",
        lambda: observer.call("sealift.v1.PromotionService/CreatePromotion", request, ci.pool),
    )
    anonymous = Client(address, ca)
    refused(
        "nobody lists environments",
        grpc.StatusCode.UNAUTHENTICATED,
        "CERTIFICATE_MISSING",
        lambda: anonymous.call("sealift.v1.EnvironmentService/ListEnvironments", {}, ci.pool),
    )
    error = refused(
        "a malformed name",
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        lambda: ci.call("sealift.v1.EnvironmentService/GetEnvironment", {"name": "environments/NO"}),
    )
    violations = details(error)["BadRequest"].field_violations
    assert violations and violations[0].field, "no field violation"
    print("all as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
