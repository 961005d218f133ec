"""AWS Signature Version 4, as Neptune asks it of the request that opens a websocket.

The computation is that of "Create a signed AWS API request" in the IAM user guide, for a GET without a body and without a query.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from loremesh_agents.domain.errors import ConfigurationError

_ALGORITHM = "AWS4-HMAC-SHA256"
_NO_BODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of somebody whom AWS knows.

    Attributes:
        access_key_id: Who.
        secret_access_key: The proof; never sent.
        session_token: Of credentials that expire; else empty.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def environment_credentials() -> Credentials | None:
    """Those of the environment variables that AWS's own programs read; None where there are none.

    Raises:
        ConfigurationError: There is only a half of them.
    """
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    key, secret = (os.environ.get(name, "") for name in names)
    if not key and not secret:
        return None
    if not key or not secret:
        missing = names[0] if not key else names[1]
        raise ConfigurationError(
            f"the environment variable {missing} is missing: Neptune's signature needs both {names}"
        )
    return Credentials(key, secret, os.environ.get("AWS_SESSION_TOKEN", ""))


def signed_headers(
    credentials: Credentials, *, host: str, path: str, region: str, service: str, at: datetime
) -> Mapping[str, str]:
    """Headers that prove who sends a GET.

    Args:
        credentials: Of the sender.
        host: Value of the header Host as it will be sent.
        path: Of the URL, with nothing in it that would be escaped.
        region: Where the service is.
        service: Its name in signatures.
        at: Now, in UTC; servers take a signature for five minutes.
    """
    moment, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    signed = {"host": host, "x-amz-date": moment}
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    canonical = f"GET\n{path}\n\n{lines}\n{names}\n{_NO_BODY}"
    scope = f"{day}/{region}/{service}/aws4_request"
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signature = hmac.digest(key, f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
    authorization = (
        f"{_ALGORITHM} Credential={credentials.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**{name: value for name, value in signed.items() if name != "host"}, "authorization": authorization}
