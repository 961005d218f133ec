import grpc
import pytest

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.channel import ChannelOptions, open_channel
from loremesh_agents.runtime.server import ServerOptions
from loremesh_agents.runtime.tls import ClientTls, ServerTls

from .certificates import Authority
from .support import Stub, echo, service, serving, text


async def ask(target, tls):
    async with open_channel(target, ChannelOptions(tls=tls)) as channel:
        return (await Stub(channel).Unary(text("hi"), timeout=5)).value


async def test_tls(tmp_path):
    authority = Authority.at(tmp_path / "a")
    async with serving(service(unary=echo), ServerOptions(tls=authority.server())) as running:
        assert await ask(running.server.target, authority.anonymous_client()) == "hi"
        with pytest.raises(grpc.aio.AioRpcError) as stranger:
            await ask(running.server.target, Authority.at(tmp_path / "b").anonymous_client())
        assert stranger.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_lets_in_only_clients_of_its_authority(tmp_path):
    authority = Authority.at(tmp_path / "a")
    stranger = Authority.at(tmp_path / "b").client("gateway.test")
    async with serving(service(unary=echo), ServerOptions(tls=authority.server(mutual=True))) as running:
        assert await ask(running.server.target, authority.client("gateway.test")) == "hi"
        for tls in (
            authority.anonymous_client(),
            ClientTls(ca=authority.ca_file, certificate=stranger.certificate, key=stranger.key),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(running.server.target, tls)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path):
    old, new = Authority.at(tmp_path / "old"), Authority.at(tmp_path / "new")
    files = old.server()
    async with serving(service(unary=echo), ServerOptions(tls=files)) as running:
        assert await ask(running.server.target, old.anonymous_client()) == "hi"
        new.server()
        for name in ("server.pem", "server.key"):
            (tmp_path / "new" / name).replace(tmp_path / "old" / name)
        assert await ask(running.server.target, new.anonymous_client()) == "hi"


async def test_half_a_renewal_leaves_the_old_certificate(tmp_path):
    authority = Authority.at(tmp_path)
    async with serving(service(unary=echo), ServerOptions(tls=authority.server())) as running:
        assert await ask(running.server.target, authority.anonymous_client()) == "hi"
        (tmp_path / "server.key").unlink()
        assert await ask(running.server.target, authority.anonymous_client()) == "hi"


async def test_the_name_in_the_certificate_may_differ_from_the_one_dialled(tmp_path):
    authority = Authority.at(tmp_path)
    tls = ClientTls(ca=authority.ca_file, server_name="localhost")
    async with serving(
        service(unary=echo), ServerOptions(address="unix:" + str(tmp_path / "s"), tls=authority.server())
    ) as r:
        assert await ask(r.server.target, tls) == "hi"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing\.pem"):
        ServerTls(tmp_path / "nothing.pem", tmp_path / "nothing.pem").credentials()
    with pytest.raises(ConfigurationError, match=r"nothing\.pem"):
        ClientTls(ca=tmp_path / "nothing.pem").credentials()
