"""Programs that a benchmark runs beside itself."""

import os

from bench.processes import running


async def test_what_interrupts_a_benchmark_does_not_interrupt_its_programs() -> None:
    async with running("bench.relay", "generator", "1") as program:
        # Ctrl-C goes to the process group of the terminal: answers in flight would be cut off by it.
        assert all(os.getpgid(process.pid) != os.getpgrp() for process in program.processes())
