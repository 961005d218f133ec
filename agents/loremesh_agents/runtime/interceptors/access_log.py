"""Writes one line a call."""

import logging
import time

from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.interceptors.base import Proceed

_log = logging.getLogger("loremesh.access")


class AccessLogInterceptor:
    """Logs every call at its end: method, final status, duration, and how many messages went each way."""

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call, then logs it, however it ended."""
        try:
            await proceed(call)
        finally:
            if _log.isEnabledFor(logging.INFO):
                self._write(call)

    @staticmethod
    def _write(call: ServerCall) -> None:
        milliseconds = round((time.monotonic() - call.started) * 1000, 3)
        code = call.final_code.name
        extra: dict[str, object] = {
            "code": code,
            "duration_ms": milliseconds,
            "received": call.received,
            "sent": call.sent,
        }
        if call.reason:
            extra["reason"] = call.reason
        if call.request_context.peer:
            extra["peer"] = call.request_context.peer
        _log.info("%s %s in %.1f ms", call.method.full_name, code, milliseconds, extra=extra)
