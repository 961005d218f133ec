import subprocess
import sys

from loremesh_agents.runtime.tracing import NO_TRACING


def test_no_tracing_does_nothing():
    with NO_TRACING.server_span(None):
        span = NO_TRACING.client_span("peer", "a/b")
    assert span.metadata == ()
    span.finish(None)


def test_opentelemetry_is_not_imported_unless_it_is_wanted():
    program = (
        "import sys, loremesh_agents.runtime.server, loremesh_agents.runtime.channel, loremesh_agents.runtime.workers\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
