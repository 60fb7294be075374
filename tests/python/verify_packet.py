"""Verifies an evidence packet with software that is not ours: securesystemslib, cryptography, in-toto-attestation.

Usage: verify_packet.py PACKET PUBLIC_KEY_PEM... [--private-key PEM]

Every given public key must have signed. Exits 0 only when all signatures verify, the statement is a valid in-toto Statement v1,
and a packet with one byte flipped is refused. `--private-key` also checks that the private key file can be read (PKCS#8 v1).
Needs: pip install securesystemslib cryptography in-toto-attestation
"""

import argparse
import base64
import json

from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

PREDICATE_TYPE = "https://sealift.dev/evidence/deployment/v1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packet")
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--private-key")
    arguments = parser.parse_args()

    with open(arguments.packet, "rb") as file:
        raw = file.read()
    keys = []
    for path in arguments.keys:
        with open(path, "rb") as file:
            keys.append(SSlibKey.from_crypto(load_pem_public_key(file.read())))

    # Each key on its own, so that none can stand in for another; then all together.
    for key in keys:
        Envelope.from_dict(json.loads(raw)).verify([key], 1)
    envelope = Envelope.from_dict(json.loads(raw))
    envelope.verify(keys, len(keys))
    assert envelope.payload_type == "application/vnd.in-toto+json", envelope.payload_type

    message = json_format.Parse(envelope.payload, statement_pb2.Statement())
    statement = Statement.copy_from_pb(message)
    statement.validate()
    assert message.predicate_type == PREDICATE_TYPE, message.predicate_type

    # One flipped bit in the payload, at the beginning, in the middle and at the end.
    for position in (0, len(envelope.payload) // 2, len(envelope.payload) - 1):
        changed = bytearray(envelope.payload)
        changed[position] ^= 1
        tampered = json.loads(raw)
        tampered["payload"] = base64.b64encode(bytes(changed)).decode()
        try:
            Envelope.from_dict(tampered).verify(keys, 1)
        except VerificationError:
            continue
        raise SystemExit(f"a packet with byte {position} flipped was accepted")

    if arguments.private_key:
        with open(arguments.private_key, "rb") as file:
            load_pem_private_key(file.read(), None)

    subjects = ", ".join(f"{subject.name}@sha256:{subject.digest['sha256']}" for subject in message.subject)
    result = json_format.MessageToDict(message.predicate)["result"]
    print(f"verified: {len(keys)} signatures, {result}, {subjects}; tampered copies refused")


if __name__ == "__main__":
    main()
