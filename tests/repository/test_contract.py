"""Facts about the contract."""

from importlib import import_module

import pytest
from google.protobuf import descriptor_pb2
from loremesh.v1 import error_reason_pb2

from loremesh_agents.domain.errors import ERRORS_BY_REASON


def test_reasons_of_contract_and_domain_are_the_same() -> None:
    names = {value.name.removeprefix("ERROR_REASON_") for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values}
    assert names - {"UNSPECIFIED"} == set(ERRORS_BY_REASON)


@pytest.mark.parametrize("name", ["coordinator", "retriever", "synthesizer", "generator", "knowledge"])
def test_every_method_says_whether_it_may_be_repeated(name: str) -> None:
    module = import_module(f"loremesh.v1.{name}_service_pb2")
    (service,) = module.DESCRIPTOR.services_by_name.values()
    unknown = descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
    for method in service.methods:
        once = method.GetOptions().idempotency_level == unknown
        assert once == (method.name in ("Ask", "Chat", "Generate")), method.full_name
