"""Decides whether the principal that a peer sends is to be believed."""

import enum
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from loremesh_agents.domain.errors import PrincipalNotTrusted
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.runtime.call import ServerCall, ServicerContext
from loremesh_agents.runtime.context import PRINCIPAL_KEY, decode_principal
from loremesh_agents.runtime.interceptors.base import Proceed

CLIENT_CERTIFICATE_KEY = "x-forwarded-client-cert"
"""Metadata in which a sidecar names the certificate of the peer that it has authenticated."""

_SIDECAR_V6 = ipaddress.ip_address("::6")
"""The address, not a loopback one, from which Istio's sidecar connects over IPv6; over IPv4 it is 127.0.0.6."""

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_PAIR = re.compile(rf'(?:[^;"]|{_QUOTED})+')
_HEADER = re.compile(rf'(?:[^"]|{_QUOTED})*')


class PeerTrust(enum.Enum):
    """What proves who a peer is.

    The two weaker ones hold for addresses that only the right peers can reach, which is for the deployment to see to.
    """

    NOTHING = "nothing"
    """Nothing does: every principal is refused."""

    CERTIFICATE = "certificate"
    """The client certificate of the connection, checked by TLS."""

    SIDECAR = "sidecar"
    """A sidecar on this host, which names in `x-forwarded-client-cert` the certificate that it has checked."""

    SOCKET = "socket"
    """A connection over a Unix socket: for agents of one user that keep their sockets in a folder of that user."""


class AuthenticationInterceptor:
    """Takes a principal from authenticated peers only; calls without one are anonymous, whoever makes them."""

    def __init__(self, agent: str, trust: PeerTrust, issuers: Iterable[str] = ()) -> None:
        """Sets up the check.

        Args:
            agent: Name of the agent, for errors.
            trust: What proves who a peer is.
            issuers: Names (URI or DNS) of the peers that may send a principal; empty for all authenticated ones. A Unix
                socket has no names, so that none is compared there.
        """
        self._agent = agent
        self._trust = trust
        self._issuers = frozenset(issuers)

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call on behalf of its principal.

        Raises:
            PrincipalNotTrusted: There is a principal, but this peer may not send one.
        """
        names = self._names(call)
        peer = names[0] if names else ""
        claimed = call.metadata.get(PRINCIPAL_KEY)
        if claimed is None:
            if peer:
                call.authenticate(ANONYMOUS, peer)
        else:
            if not names or not self._may_issue(names) or not isinstance(claimed, bytes):
                raise PrincipalNotTrusted(self._agent)
            try:
                principal = decode_principal(claimed)
            except DecodeError:
                raise PrincipalNotTrusted(self._agent) from None
            call.authenticate(principal, peer)
        await proceed(call)

    def _may_issue(self, names: list[str]) -> bool:
        return not self._issuers or self._trust is PeerTrust.SOCKET or not self._issuers.isdisjoint(names)

    def _names(self, call: ServerCall) -> list[str]:
        """The names of an authenticated peer, URIs first; empty for a peer that has proved nothing."""
        match self._trust:
            case PeerTrust.CERTIFICATE:
                return _names_of_certificate(call.servicer_context)
            case PeerTrust.SIDECAR if _is_sidecar(call.servicer_context.peer()):
                return _names_of_header(call.metadata.get(CLIENT_CERTIFICATE_KEY))
            case PeerTrust.SOCKET if call.servicer_context.peer().startswith("unix:"):
                return ["unix"]
            case _:
                return []


def _names_of_certificate(context: ServicerContext) -> list[str]:
    properties = context.auth_context()
    if b"ssl" not in properties.get("transport_security_type", ()):
        return []
    names = [
        name.decode("utf-8", "replace")
        for key in ("x509_subject_alternative_name", "x509_common_name")
        for name in properties.get(key, ())
    ]
    return sorted(names, key=lambda name: "://" not in name)


def _names_of_header(value: str | bytes | None) -> list[str]:
    """The URIs, then the DNS names, of the certificate that a sidecar names: `By=...;Subject="...";URI=...,By=...`."""
    if not isinstance(value, str) or not _HEADER.fullmatch(value):
        return []
    # Each proxy appends an element; the last one is our sidecar's, about the peer that it talks to.
    elements = _ELEMENT.findall(value)
    # What is quoted, a subject for instance, may hold separators and whatever else its owner likes.
    pairs = [pair.partition("=") for pair in (_PAIR.findall(elements[-1]) if elements else [])]
    return [
        unquote(name.strip('"'))
        for wanted in ("uri", "dns")
        for key, _, name in pairs
        if key.lower() == wanted and name
    ]


def _is_sidecar(peer: str) -> bool:
    """Whether a peer, as in `ipv4:127.0.0.6:41002` or `ipv6:%5B::1%5D:41002`, is on this host."""
    if peer.startswith("unix:"):
        return True
    scheme, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]")
    if scheme not in ("ipv4", "ipv6"):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address == _SIDECAR_V6
