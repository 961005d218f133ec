"""`python -m bench.http_pipeline STAGE [options]`: serves one stage on a free port of loopback and prints where."""

import argparse
import asyncio
import socket
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from bench.canned_retriever import CannedRetriever
from bench.http_pipeline.connections import Connections
from bench.http_pipeline.coordinator import Relay, coordinator
from bench.http_pipeline.stages import generator, retriever, synthesizer
from bench.relay import PacedModel
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.settings import GeneratorSettings


def _app(arguments: argparse.Namespace) -> FastAPI:
    match arguments.stage:
        case "retriever":
            return retriever(CannedRetriever())
        case "synthesizer":
            return synthesizer(Connections(arguments.generator))
        case "generator":
            model: Any = PacedModel()
            settings = GeneratorSettings(
                default_max_tokens=1 << 20, tokens_together=arguments.together, tokens_in_flight=1 << 40
            )
            return generator(GeneratorService(model, settings, TokenAdmission(settings)))
        case _:
            addresses = (arguments.retriever, arguments.synthesizer, arguments.generator)
            return coordinator(*map(Connections, addresses), Relay(arguments.relay))


async def _serve(arguments: argparse.Namespace) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        config = uvicorn.Config(
            _app(arguments),
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=120,  # longer than the clients keep a connection
        )
        print(arguments.stage, f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve([listening])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("retriever", "synthesizer", "generator", "coordinator"))
    parser.add_argument("--together", type=int, default=32, help="Most tokens of one event.")
    parser.add_argument("--relay", choices=[relay.value for relay in Relay], default=Relay.LINES.value)
    for name in ("retriever", "synthesizer", "generator"):
        parser.add_argument(f"--{name}", default="", help="Its address.")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args()))


main()
