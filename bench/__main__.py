"""`python -m bench NAME [--data DIR] [options]`: runs one benchmark; the last line of its output is one JSON object."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = {
    "http_baseline": "the mesh against the same pipeline of FastAPI services with httpx between them",
    "answers": "quality of the extractive answers on a data set in BEIR layout",
    "cancel": "how soon a real vLLM rests after a client has cancelled",
    "engines": "graph engines side by side: documents in, questions answered",
    "failover": "answers whose engine is killed in the middle, with real vLLM engines",
    "freshness": "how soon an acknowledged document is found by another process",
    "generation": "what the mesh takes from a real vLLM in tokens a second and time to the first token",
    "histories": "what graph stores show while their writers are killed, against a small model",
    "injection": "what hostile documents can do to a prompt, with the guard and without it",
    "overload": "what one who floods costs another who asks now and then",
    "relay": "what the coordinator adds to a token stream between a client and a generator",
    "retrieval": "quality and time of the retriever on a data set in BEIR layout",
    "streams": "how many paced streams a coordinator holds, and one with several workers",
    "title-sources": "what each source of names is worth",
    "train-ranker": "training of the retriever's ranker, and its worth on sets that it has not seen",
    "scale": "what grows with a collection: time, memory, ingestion, opening",
}
"""Modules of this package by name, with what they measure. Each has `add_arguments(parser)` and `run(arguments) -> dict`."""


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"bench.{name.replace('-', '_')}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    # A benchmark's module and what it imports are loaded only when it is chosen.
    chosen = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    for name, purpose in BENCHMARKS.items():
        subparser = names.add_parser(name, help=purpose, description=purpose)
        if name == chosen:
            subparser.add_argument("--data", type=Path, help="Folder of the data set.")
            _module(name).add_arguments(subparser)
    arguments = parser.parse_args()
    figures = _module(arguments.name).run(arguments)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
