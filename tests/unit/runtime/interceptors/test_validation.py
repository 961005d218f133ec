import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from loremesh_agents.domain.errors import InvalidRequest
from loremesh_agents.runtime.errors import from_rpc_error_for_user
from loremesh_agents.runtime.interceptors.validation import ValidationInterceptor
from loremesh_agents.runtime.server import Service

from ..support import AGENT, serving

NAME = "test.validation.v1.Order"
_FIELD = descriptor_pb2.FieldDescriptorProto


def _order():
    """message Order {string item; repeated Order parts; map<string, int32> counts;}, with rules on the fields."""
    file = descriptor_pb2.FileDescriptorProto(name="test/order.proto", package="test.validation.v1", syntax="proto3")
    file.dependency.append("buf/validate/validate.proto")
    order = file.message_type.add(name="Order")
    item = order.field.add(name="item", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    item.options.Extensions[validate_pb2.field].string.min_len = 1
    item.options.Extensions[validate_pb2.field].string.max_bytes = 100
    parts = order.field.add(
        name="parts", number=2, type=_FIELD.TYPE_MESSAGE, type_name=f".{NAME}", label=_FIELD.LABEL_REPEATED
    )
    parts.options.Extensions[validate_pb2.field].repeated.max_items = 50
    entry = order.nested_type.add(name="CountsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=_FIELD.TYPE_INT32, label=_FIELD.LABEL_OPTIONAL)
    counts = order.field.add(
        name="counts", number=3, type=_FIELD.TYPE_MESSAGE, type_name=f".{NAME}.CountsEntry", label=_FIELD.LABEL_REPEATED
    )
    counts.options.Extensions[validate_pb2.field].map.values.int32.gt = 0
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(NAME))


Order = _order()


def violations(message):
    with pytest.raises(InvalidRequest) as error:
        ValidationInterceptor([Order]).check(message)
    return {violation.field: violation for violation in error.value.violations}


def test_a_message_that_keeps_the_rules_passes():
    ValidationInterceptor().check(Order(item="a", parts=[Order(item="b")], counts={"x": 1}))


def test_violations_name_field_rule_and_value():
    found = violations(Order(item="a", parts=[Order(item="b"), Order(item="")], counts={"x y": -3}))
    assert set(found) == {"parts[1].item", 'counts["x y"]'}
    assert found["parts[1].item"].rule == "string.min_len"
    assert found['counts["x y"]'].rule == "int32.gt"
    assert "-3" in found['counts["x y"]'].description


def test_an_offending_value_is_cut():
    (violation,) = violations(Order(item="é" * 10_000)).values()
    value = violation.description.partition("got ")[2]
    assert value.startswith("'éé")
    assert len(value.encode()) <= 64


def test_at_most_sixteen_are_named():
    assert len(violations(Order(item="a", parts=[Order()] * 40))) == 16


async def test_each_message_of_a_stream_is_checked():
    read = []

    async def unary(request, _):
        read.append(request)
        return request

    async def duplex(requests, _):
        async for request in requests:
            read.append(request)
            yield request

    codec = {"request_deserializer": Order.FromString, "response_serializer": Order.SerializeToString}
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, **codec),
        "Duplex": grpc.stream_stream_rpc_method_handler(duplex, **codec),
    }

    def register(server):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Orders", handlers),))

    client = {"request_serializer": Order.SerializeToString, "response_deserializer": Order.FromString}
    async with serving(Service("test.v1.Orders", register, (Order,))) as running:
        with pytest.raises(grpc.aio.AioRpcError) as one:
            await running.channel.unary_unary("/test.v1.Orders/Unary", **client)(Order())
        call = running.channel.stream_stream("/test.v1.Orders/Duplex", **client)(iter([Order(item="a"), Order()]))
        answers = aiter(call)
        assert (await anext(answers)).item == "a"
        with pytest.raises(grpc.aio.AioRpcError) as second:
            await anext(answers)
    for error in (one.value, second.value):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = from_rpc_error_for_user(error, AGENT).violations
        assert (violation.field, violation.rule) == ("item", "string.min_len")
    assert [order.item for order in read] == ["a"]
