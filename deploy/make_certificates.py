"""Make a development CA, certificates, SuperNode keys and executor secrets for docker-compose.tls.yml.

    python deploy/make_certificates.py            # into certificates/, which git ignores

One folder a service, each mounted read-only into that service alone; what is there already is kept, so that
registered SuperNodes stay registered (delete the folder to begin anew):

    ca/           ca.key, ca.crt: the key signs certificates and is mounted nowhere
    superlink/    ca.crt, server.crt, server.key, executor.secret
    serverapp/    ca.crt, executor.secret (the SuperLink's)
    supernode-N/  ca.crt, server.crt, server.key (for its executor), executor.secret, node.key (its identity)
    clientapp-N/  ca.crt, executor.secret (supernode-N's)
    run/          ca.crt, nodes/supernode-N.pub (public keys to register)

For development: the CA's key lies unencrypted beside the rest, and nothing is ever revoked.
"""

import argparse
import datetime
import os
import secrets
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 825
"""How long certificates are valid: the longest that common TLS clients accept."""


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that has its permissions before it has its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_bytes(content)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    """Write a private key, readable to its owner only."""
    write(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), 0o600)


def certificate(
    key: ec.EllipticCurvePrivateKey, name: str, issuer: x509.Name, *names: x509.GeneralName
) -> x509.CertificateBuilder:
    """What all our certificates have in common; `names` are a server's."""
    now = datetime.datetime.now(datetime.UTC)
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(identity, critical=False)
        .add_extension(x509.BasicConstraints(not names, 0 if not names else None), critical=True)
    )
    return builder.add_extension(x509.SubjectAlternativeName(names), False) if names else builder


def usage(signs_certificates: bool) -> x509.KeyUsage:
    """A CA signs certificates; a server signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """The development CA; made on first use, and kept."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ca.key"
        if not path.exists():
            key = ec.generate_private_key(ec.SECP384R1())
            name = "fedferry development CA"
            issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            builder = certificate(key, name, issuer).add_extension(usage(True), critical=True)
            signed = builder.sign(key, hashes.SHA384())
            write(folder / "ca.crt", signed.public_bytes(Encoding.PEM))
            write_key(path, key, PrivateFormat.PKCS8)
        loaded = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        self.pem = (folder / "ca.crt").read_bytes()
        self._certificate = x509.load_pem_x509_certificate(self.pem)

    def certify(self, folder: Path, service: str) -> None:
        """A server certificate for a service's name, and for this machine's loopback."""
        if (folder / "server.key").exists():
            return
        key = ec.generate_private_key(ec.SECP384R1())
        loopback = x509.IPAddress(ip_address("127.0.0.1"))
        names = [x509.DNSName(service), x509.DNSName("localhost"), loopback]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = (
            certificate(key, service, self._certificate.subject, *names)
            .add_extension(authority, critical=False)
            .add_extension(usage(False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        write(folder / "server.crt", signed.public_bytes(Encoding.PEM))
        write_key(folder / "server.key", key, PrivateFormat.PKCS8)


def make_node_key(private: Path, public: Path) -> None:
    """A SuperNode's identity: a NIST EC key (Flower takes no other kind) in OpenSSH's format."""
    if private.exists():
        return
    key = ec.generate_private_key(ec.SECP384R1())
    write(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    write_key(private, key, PrivateFormat.OpenSSH)


def share_secret(*folders: Path) -> None:
    """A secret that a SuperLink or SuperNode and its executor have in common."""
    path = folders[0] / "executor.secret"
    content = path.read_bytes() if path.exists() else secrets.token_hex(32).encode()
    for folder in folders:
        write(folder / path.name, content, 0o600)


def make_all(folder: Path, nodes: int) -> None:
    """Everything that the services need, each in a folder of its own."""
    authority = Authority(folder / "ca")
    served = [f"supernode-{number}" for number in range(1, nodes + 1)]
    executors = [f"clientapp-{number}" for number in range(1, nodes + 1)]
    for service in ("superlink", *served):
        authority.certify(folder / service, service)
    for service in ("superlink", "serverapp", "run", *served, *executors):
        write(folder / service / "ca.crt", authority.pem)
    share_secret(folder / "superlink", folder / "serverapp")
    for service, executor in zip(served, executors, strict=True):
        share_secret(folder / service, folder / executor)
        make_node_key(folder / service / "node.key", folder / "run/nodes" / f"{service}.pub")


def give_away(folder: Path, uid: int) -> None:
    """Let the containers' user read what is only its own; whoever is not root owns it already."""
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            if path.relative_to(folder).parts[:1] != ("ca",):
                os.chown(path, uid, -1)


def main() -> None:
    """Read the command line and make what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).parent.parent
    parser.add_argument(
        "folder", nargs="?", type=Path, default=root / "certificates", help="where all of it goes"
    )
    parser.add_argument("--nodes", type=int, default=3, help="number of SuperNodes")
    options = parser.parse_args()
    folder = options.folder.resolve()
    make_all(folder, options.nodes)
    uid = int(os.environ.get("FEDFERRY_UID", "1000"))
    give_away(folder, uid)
    owner = folder.stat().st_uid
    if owner != uid:
        print(f"the keys belong to user {owner}: set FEDFERRY_UID={owner} for docker compose")
    print(f"certificates, keys and secrets are in {folder}")


if __name__ == "__main__":
    main()
