"""Certificates for tests of TLS."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loremesh_agents.runtime.tls import ClientTls, ServerTls


@dataclass
class Authority:
    """An authority, with a folder to write PEM files to."""

    ca: trustme.CA
    folder: Path

    @classmethod
    def at(cls, folder: Path) -> "Authority":
        folder.mkdir(parents=True, exist_ok=True)
        authority = cls(trustme.CA(), folder)
        authority.ca.cert_pem.write_to_path(str(authority.ca_file))
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def server(self, *, mutual: bool = False) -> ServerTls:
        self.renew_server()
        return ServerTls(self.folder / "server.pem", self.folder / "server.key", self.ca_file if mutual else None)

    def renew_server(self) -> None:
        certificate = self.ca.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))

    def anonymous_client(self) -> ClientTls:
        return ClientTls(ca=self.ca_file)

    def client(self, *names: str) -> ClientTls:
        """A client whose certificate has those names: URIs where they look like one, else DNS."""
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        issuer_key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
                ),
                critical=True,
            )
            .sign(issuer_key, hashes.SHA256())
        )
        stem = names[0].replace("/", "_").replace(":", "_")
        (self.folder / f"{stem}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{stem}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return ClientTls(ca=self.ca_file, certificate=self.folder / f"{stem}.pem", key=self.folder / f"{stem}.key")
