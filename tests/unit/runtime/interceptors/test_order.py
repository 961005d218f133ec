import inspect

from loremesh_agents.runtime import interceptors


def test_the_order_is_the_one_of_the_architecture():
    names = list(inspect.signature(interceptors.in_order).parameters)
    order = interceptors.in_order(**{name: name for name in names})
    assert order == [
        "telemetry",
        "request_context",
        "access_log",
        "errors",
        "authentication",
        "admission",
        "deadline",
        "validation",
    ]
