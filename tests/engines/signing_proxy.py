"""A double of Neptune's front door: TLS, and the signature of the request that opens a websocket checked before anything else."""

import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from tests.engines.door import Door

REGION = "eu-west-1"
KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


class SigningProxy(Door):
    """Passes on the connections of those who sign.

    Args:
        target: Port of the server behind.
        keys: Secret access keys, by their ids.
        region: Whose signatures are taken.
    """

    def __init__(self, target: int, keys: dict[str, str], region: str) -> None:
        super().__init__(target, "403 Forbidden")
        self._keys = keys
        self._region = region

    def refusal(self, first: str, headers: dict[str, str]) -> str:
        algorithm, _, rest = headers.get("authorization", "").partition(" ")
        if algorithm != "AWS4-HMAC-SHA256":
            return "no signature"
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        key_id, day, region, service, last = fields["Credential"].split("/")
        sent = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs((datetime.now(UTC) - sent).total_seconds()) > 300 or not headers["x-amz-date"].startswith(day):
            return "an old signature"
        if (region, service, last) != (self._region, "neptune-db", "aws4_request") or key_id not in self._keys:
            return "a signature for somebody else"
        names = fields["SignedHeaders"].split(";")
        if "host" not in names or ("x-amz-security-token" in headers) != ("x-amz-security-token" in names):
            return "headers without a signature"
        method, path, _ = first.split(" ")
        canonical = "\n".join(
            [
                method,
                path,
                "",
                *(f"{name}:{headers[name]}" for name in names),
                "",
                ";".join(names),
                hashlib.sha256().hexdigest(),
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = b"AWS4" + self._keys[key_id].encode()
        for part in (day, region, service, last):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = "\n".join([algorithm, headers["x-amz-date"], f"{day}/{region}/{service}/{last}", digest])
        wanted = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return "" if hmac.compare_digest(wanted, fields["Signature"]) else "a wrong signature"


@asynccontextmanager
async def front_door(target: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SigningProxy]:
    """A door whose authority this process and its children trust, and that lets them in.

    Args:
        target: Port of the server behind.
        folder: For the authority's certificate.
        monkeypatch: Of the test.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with SigningProxy(target, {KEY_ID: SECRET}, REGION).serving(context) as found:
        yield found
