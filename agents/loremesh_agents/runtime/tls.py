"""Certificates of servers and clients."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from loremesh_agents.domain.errors import ConfigurationError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server proves itself with, and whom it lets in.

    The files are read again when they change, so that certificates can be renewed while the server runs.

    Attributes:
        certificate: PEM file of the certificate, followed by its intermediates.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities that clients' certificates must come from; None to ask for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a server's port.

        Raises:
            ConfigurationError: A file cannot be read.
        """
        files = _ServerFiles(self)
        # It may give None for no change, whatever its type says.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", files.changed)
        return grpc.dynamic_ssl_server_credentials(files.read(), fetch, self.client_ca is not None)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom a client believes, and what it proves itself with.

    Attributes:
        ca: PEM file of the authorities that servers' certificates must come from; None for the usual public ones.
        certificate: PEM file of the client's own certificate, None to show none.
        key: PEM file of its private key.
        server_name: The name to look for in the server's certificate where it is not the one dialled.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a channel.

        Raises:
            ConfigurationError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca) if self.ca is not None else None,
            private_key=_read(self.key) if self.key is not None else None,
            certificate_chain=_read(self.certificate) if self.certificate is not None else None,
        )


class _ServerFiles:
    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._paths = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
        self._seen = self._times()

    def read(self) -> grpc.ServerCertificateConfiguration:
        tls = self._tls
        return grpc.ssl_server_certificate_configuration(
            [(_read(tls.key), _read(tls.certificate))], _read(tls.client_ca) if tls.client_ca is not None else None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates if the files have changed; gRPC asks at each handshake."""
        try:
            times = self._times()
            if times == self._seen:
                return None
            configuration = self.read()
        except (OSError, ConfigurationError) as error:
            # In the middle of a renewal: the next handshake tries again.
            _log.warning("certificates are not renewed yet: %s", error)
            return None
        self._seen = times
        return configuration

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in self._paths]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the TLS file {path} cannot be read: {error.strerror}") from error
