"""Turns whatever a call raises into its final status."""

import asyncio
import logging
from typing import NoReturn, cast

import grpc

from loremesh_agents.domain.errors import InternalError, LoremeshError, NotImplementedYet
from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.errors import DETAILS_KEY, code_of, to_status
from loremesh_agents.runtime.ids import new_id
from loremesh_agents.runtime.interceptors.base import Proceed

_log = logging.getLogger(__name__)


class ErrorsInterceptor:
    """Answers domain errors with their status, and the rest with an incident id whose cause only the log knows."""

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call and notes its final status code."""
        try:
            await proceed(call)
        except asyncio.CancelledError as error:
            if call.code is None:
                if not _is_cancelled():
                    await _abort(call, _as_domain_error(error, call))
                call.code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            # The servicer ended the call itself, by `context.abort`.
            call.code = call.servicer_context.code()
            raise
        except BaseExceptionGroup as group:
            await _abort(call, _most_telling(group, call))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is logged and becomes an incident
            await _abort(call, _as_domain_error(error, call))
        else:
            # gRPC has None here until somebody sets a code.
            call.code = call.servicer_context.code() or grpc.StatusCode.OK


def _is_cancelled() -> bool:
    """Whether this task is being cancelled.

    Otherwise a CancelledError comes from something that the servicer waited for, and is a defect like another: gRPC
    would take it for a cancel by the caller and never answer.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _abort(call: ServerCall, error: LoremeshError) -> NoReturn:
    status = to_status(error)
    call.code = code_of(error)
    call.reason = error.reason
    trailing_metadata = (*call.trailing_metadata, (DETAILS_KEY, status.SerializeToString()))
    try:
        # Not abort_with_status: wrappers of the context, OpenTelemetry's among them, see only abort.
        await call.servicer_context.abort(call.code, status.message, trailing_metadata)
    except grpc.aio.InternalError:
        # The caller is gone. One that does not read keeps its status waiting here, when all else is cleaned up, until
        # it leaves.
        raise asyncio.CancelledError from None


def _most_telling(group: BaseExceptionGroup[BaseException], call: ServerCall) -> LoremeshError:
    """The error that a group of failed tasks is answered with: an incident, else the first one that was raised."""
    leaves = [_as_domain_error(leaf, call) for leaf in _leaves(group)]
    return next((leaf for leaf in leaves if isinstance(leaf, InternalError)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [leaf for child in group.exceptions for leaf in _leaves(child)]
    if not isinstance(error, Exception):
        raise error
    return [error]


def _as_domain_error(error: BaseException, call: ServerCall) -> LoremeshError:
    if isinstance(error, LoremeshError) and error.reason:
        return error
    if isinstance(error, NotImplementedError):
        # The generated base class of a servicer raises it for methods that the servicer lacks.
        return NotImplementedYet(call.method.full_name)
    incident_id = new_id()
    _log.error(
        "incident %s in %s", incident_id, call.method.full_name, exc_info=error, extra={"incident_id": incident_id}
    )
    return InternalError(incident_id)
