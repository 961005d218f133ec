import grpc
import pytest

from loremesh_agents.domain.errors import PrincipalNotTrusted
from loremesh_agents.domain.principal import ANONYMOUS, Principal
from loremesh_agents.runtime.channel import ChannelOptions, open_channel
from loremesh_agents.runtime.context import PRINCIPAL_KEY, current, encode_principal
from loremesh_agents.runtime.errors import from_rpc_error_for_user
from loremesh_agents.runtime.interceptors.authentication import CLIENT_CERTIFICATE_KEY, _is_sidecar
from loremesh_agents.runtime.server import PeerTrust, ServerOptions

from ..certificates import Authority
from ..support import AGENT, Stub, service, serving, text

ADA = Principal("ada", frozenset({"staff", "legal"}))
SENT = (PRINCIPAL_KEY, encode_principal(ADA))
GATEWAY = "spiffe://test/ns/loremesh/sa/gateway"


class Asked:
    """A service that notes on whose behalf it was called, and by whom."""

    def __init__(self):
        self.principal = None
        self.peer = None
        self.service = service(unary=self.unary)

    async def unary(self, request, _):
        context = current()
        self.principal, self.peer = context.principal, context.peer
        return request


@pytest.fixture
def asked():
    return Asked()


async def refused(stub, *metadata):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Unary(text(), metadata=metadata, timeout=5)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert isinstance(from_rpc_error_for_user(error.value, AGENT), PrincipalNotTrusted)


@pytest.mark.parametrize("trust", list(PeerTrust))
async def test_plain_text_from_nobody_in_particular_brings_no_principal(asked, trust):
    async with serving(asked.service, ServerOptions(trust=trust)) as running:
        await refused(running.stub, SENT)
        assert asked.principal is None


@pytest.mark.parametrize("trust", list(PeerTrust))
async def test_without_a_principal_everybody_is_anonymous(asked, trust):
    async with serving(asked.service, ServerOptions(trust=trust)) as running:
        await running.stub.Unary(text())
    assert asked.principal == ANONYMOUS


@pytest.mark.parametrize("names", [(GATEWAY,), ("gateway.test",), ("gateway.test", GATEWAY)])
async def test_a_client_certificate_vouches(asked, tmp_path, names):
    authority = Authority.at(tmp_path)
    options = ServerOptions(tls=authority.server(mutual=True), trust=PeerTrust.CERTIFICATE)
    async with (
        serving(asked.service, options) as running,
        open_channel(running.server.target, ChannelOptions(tls=authority.client(*names))) as channel,
    ):
        await Stub(channel).Unary(text(), metadata=(SENT,))
    assert asked.principal == ADA
    assert asked.peer == names[-1]


async def test_only_issuers_on_the_list_may_send_one(asked, tmp_path):
    authority = Authority.at(tmp_path)
    options = ServerOptions(
        tls=authority.server(mutual=True), trust=PeerTrust.CERTIFICATE, principal_issuers=frozenset({GATEWAY})
    )
    async with serving(asked.service, options) as running:
        other = authority.client("spiffe://test/ns/loremesh/sa/batch")
        async with open_channel(running.server.target, ChannelOptions(tls=other)) as channel:
            await refused(Stub(channel), SENT)
            await Stub(channel).Unary(text())
            assert asked.principal == ANONYMOUS
            assert asked.peer == "spiffe://test/ns/loremesh/sa/batch"
        async with open_channel(running.server.target, ChannelOptions(tls=authority.client(GATEWAY))) as channel:
            await Stub(channel).Unary(text(), metadata=(SENT,))
    assert asked.principal == ADA


async def test_tls_without_a_client_certificate_proves_nothing(asked, tmp_path):
    authority = Authority.at(tmp_path)
    options = ServerOptions(tls=authority.server(), trust=PeerTrust.CERTIFICATE)
    async with (
        serving(asked.service, options) as running,
        open_channel(running.server.target, ChannelOptions(tls=authority.client(GATEWAY))) as channel,
    ):
        await refused(Stub(channel), SENT)


async def test_a_unix_socket_vouches_where_that_is_configured(asked, tmp_path):
    options = ServerOptions(address=f"unix:{tmp_path}/s", trust=PeerTrust.SOCKET)
    async with serving(asked.service, options) as running:
        await running.stub.Unary(text(), metadata=(SENT,))
    assert asked.principal == ADA
    options = ServerOptions(address=f"unix:{tmp_path}/s", trust=PeerTrust.CERTIFICATE)
    async with serving(asked.service, options) as running:
        await refused(running.stub, SENT)


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (f"By=spiffe://test/me;Hash=abc;URI={GATEWAY}", GATEWAY),
        (f'By=spiffe://test/me;Hash=abc;Subject="CN=a,OU=\\"b;URI=x\\"";URI={GATEWAY};DNS=g.test', GATEWAY),
        (f"By=spiffe://test/gw;URI=spiffe://test/edge,By=spiffe://test/me;URI={GATEWAY}", GATEWAY),
        ("By=spiffe://test/me;DNS=g.test", "g.test"),
        (f'By=x;URI="{GATEWAY}"', GATEWAY),
    ],
)
async def test_a_sidecar_vouches_for_the_last_certificate_that_it_names(asked, header, peer):
    async with serving(asked.service, ServerOptions(trust=PeerTrust.SIDECAR)) as running:
        await running.stub.Unary(text(), metadata=(SENT, (CLIENT_CERTIFICATE_KEY, header)))
    assert asked.principal == ADA
    assert asked.peer == peer


@pytest.mark.parametrize(
    "header",
    [
        "",
        "By=spiffe://test/me;Hash=abc",
        'Subject="URI=spiffe://test/fake"',
        'Subject="a;URI=spiffe://test/fake',
        'Subject="a\\";URI=spiffe://test/fake',
        ",,,",
        "URI=",
    ],
)
async def test_a_sidecar_that_names_no_certificate_vouches_for_nobody(asked, header):
    async with serving(asked.service, ServerOptions(trust=PeerTrust.SIDECAR)) as running:
        await refused(running.stub, SENT, (CLIENT_CERTIFICATE_KEY, header))


async def test_the_list_of_issuers_holds_for_sidecars(asked):
    options = ServerOptions(trust=PeerTrust.SIDECAR, principal_issuers=frozenset({GATEWAY}))
    async with serving(asked.service, options) as running:
        forged = f"By=x;URI={GATEWAY},By=x;URI=spiffe://test/other"
        await refused(running.stub, SENT, (CLIENT_CERTIFICATE_KEY, forged))
        await running.stub.Unary(text(), metadata=(SENT, (CLIENT_CERTIFICATE_KEY, f"By=x;URI={GATEWAY}")))
    assert asked.principal == ADA


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.6:41002", True),
        ("ipv4:127.0.0.1:41002", True),
        ("ipv6:%5B::1%5D:41002", True),
        ("ipv6:[::1]:41002", True),
        ("ipv6:%5B::6%5D:41002", True),
        ("unix:", True),
        ("ipv4:10.0.0.7:41002", False),
        ("ipv6:%5B2001:db8::1%5D:1", False),
        ("ipv4:nonsense", False),
        ("", False),
        ("vsock:1:2", False),
    ],
)
def test_a_sidecar_is_on_this_host(peer, expected):
    assert _is_sidecar(peer) is expected


async def test_a_principal_that_cannot_be_decoded_is_refused(asked, tmp_path):
    options = ServerOptions(address=f"unix:{tmp_path}/s", trust=PeerTrust.SOCKET)
    async with serving(asked.service, options) as running:
        await refused(running.stub, (PRINCIPAL_KEY, b"\xff\xff"))
    assert asked.principal is None
