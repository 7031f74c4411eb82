"""Certificates for a trial: an authority, and one certificate signed by it for each service, server and client.

    python deploy/certificates.py FOLDER [NAME …]

writes FOLDER/ca.crt, and FOLDER/NAME/{ca.crt,tls.crt,tls.key} as cert-manager lays them out. The folder keeps others
out; the files in it are read by containers, under users of their own. A name is the subject's common name, which
PostgreSQL compares with the role, and a DNS name beside localhost. What is there stays; the authority's own key is kept
in FOLDER/ca.key. In earnest let cert-manager, or what the house has, make them.
"""

import sys
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=90)
# For clocks that differ.
BEGINS_EARLIER = timedelta(minutes=5)
SERVICES = ("billing", "dataset", "task", "training", "evaluation", "publishing", "gateway", "worker")
NAMES = (*SERVICES, "postgres", "nats", "client")


def main(folder: Path, names: tuple[str, ...] = NAMES) -> None:
    """Writes what is missing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, key = _authority(folder)
    for name in names:
        if not (folder / name / "tls.crt").exists():
            _issue(folder / name, name, authority, key)


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    if (folder / "ca.crt").exists():
        loaded = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        assert isinstance(loaded, EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), loaded
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Saucer trial authority")])
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    (folder / "ca.key").touch(mode=0o600)
    (folder / "ca.key").write_bytes(_pem(key))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate, key


def _issue(folder: Path, name: str, authority: x509.Certificate, authority_key: EllipticCurvePrivateKey) -> None:
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName(name), x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, authority.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "tls.key").write_bytes(_pem(key))
    (folder / "ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEGINS_EARLIER)
        .not_valid_after(now + LIFETIME)
    )


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit("Usage: python deploy/certificates.py FOLDER [NAME …]")
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or NAMES)
