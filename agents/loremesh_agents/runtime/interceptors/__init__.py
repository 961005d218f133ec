"""What surrounds every call of a server. The order is in `in_order` below, and nowhere else."""

from collections.abc import Sequence

from loremesh_agents.runtime.interceptors.access_log import AccessLogInterceptor
from loremesh_agents.runtime.interceptors.admission import AdmissionInterceptor
from loremesh_agents.runtime.interceptors.authentication import AuthenticationInterceptor
from loremesh_agents.runtime.interceptors.base import Interceptor
from loremesh_agents.runtime.interceptors.deadline import DeadlineInterceptor
from loremesh_agents.runtime.interceptors.errors import ErrorsInterceptor
from loremesh_agents.runtime.interceptors.request_context import RequestContextInterceptor
from loremesh_agents.runtime.interceptors.telemetry import TelemetryInterceptor
from loremesh_agents.runtime.interceptors.validation import ValidationInterceptor

__all__ = [
    "AccessLogInterceptor",
    "AdmissionInterceptor",
    "AuthenticationInterceptor",
    "DeadlineInterceptor",
    "ErrorsInterceptor",
    "Interceptor",
    "RequestContextInterceptor",
    "TelemetryInterceptor",
    "ValidationInterceptor",
    "in_order",
]


def in_order(
    *,
    telemetry: TelemetryInterceptor,
    request_context: RequestContextInterceptor,
    access_log: AccessLogInterceptor,
    errors: ErrorsInterceptor,
    authentication: AuthenticationInterceptor,
    admission: AdmissionInterceptor,
    deadline: DeadlineInterceptor,
    validation: ValidationInterceptor,
) -> Sequence[Interceptor]:
    """The interceptors of a server, outermost first.

    Errors is outside of all that raise; telemetry and the access log are outside of errors, so that they see the final
    status. The principal is known before a call is admitted, and nothing is read from the caller before that.
    """
    return [telemetry, request_context, access_log, errors, authentication, admission, deadline, validation]
