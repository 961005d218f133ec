"""Trains the retriever's ranker on data sets in BEIR layout, and says what it is worth on sets that it has not seen.

Each data set is ingested into an embedded store of its own and asked three times: with the encoder, without one, and with substitution. What the ranker learns
from are the signals of the candidates, as the retriever itself computes them, and which of these passages are of relevant documents.

The figures are always of a ranker that was trained without the set, and without all others of its family: what stands before the first "-" of a folder's name.
`--verify` trains anew and compares the shipped file instead of writing one.

LightGBM, with trees that may only rise with what speaks for a passage: few questions from few sources teach them nothing else that holds elsewhere.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from bench.beir import COLLECTION, Query, ingest, read_documents, read_queries
from loremesh_agents.adapters.embedding.minilm import MiniLmEmbedder, find_model
from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.text.sqlite import SqliteTextIndex
from loremesh_agents.adapters.vector.faiss import FaissVectorIndex
from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import load as load_settings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.ranker import SIGNALS, Ranker, Trees, dump, load
from loremesh_agents.domain.ranking import RELEVANCE_WEIGHT
from loremesh_agents.domain.retrieval import Profile, RetrievalRequest
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.runtime.channel import open_channel

_SHIPPED = Path(__file__).parent.parent / "agents" / "loremesh_agents" / "retriever" / "ranker.json"
_BUDGET = 120.0
_CANDIDATES = 50
_ROUNDS = 200
_SEEDS = (7, 8)
"""The trees of several trainings are averaged: what one draws by chance, another does not."""
_RISING = ("cosine", "text", "prior", "gain", "first_gain", "score", "coverage", "substituted")
_FALLING = ("rank", "own_rank")
_PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 7,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "lambda_l2": 10,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "monotone_constraints": [int(name in _RISING) - int(name in _FALLING) for name in SIGNALS],
    "monotone_constraints_method": "advanced",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}
_TOLERANCE = 0.02
"""Encoders round differently from processor to processor, and the trees with them: so much may the relevance differ in the mean."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best candidates of a question in the order of their scores.

    Attributes:
        signals: Of the best, shape (n, len(SIGNALS)).
        documents: Whose passages they are, and of more that follow.
        relevant: The relevant documents.
    """

    signals: NDArray[np.float64]
    documents: Sequence[str]
    relevant: Collection[str]

    def recall(self, ranker: Ranker | None) -> float:
        """Share of the relevant documents among the first five, in per cent, with or without a ranker's opinion."""
        order = list(range(len(self.documents)))
        if ranker is not None:
            score = self.signals[:, SIGNALS.index("score")] + RELEVANCE_WEIGHT * ranker.relevance(self.signals)
            order[: len(score)] = np.argsort(-score, kind="stable").tolist()
        first = list(dict.fromkeys(self.documents[place] for place in order))[:5]
        return 100 * sum(document in self.relevant for document in first) / len(self.relevant)


@dataclass(frozen=True, slots=True)
class DataSet:
    """The candidates of a data set's questions, by how they were found: `encoder`, `no_encoder`, `substitution`."""

    name: str
    found: dict[str, list[Candidates]]

    @property
    def family(self) -> str:
        """What it has in common with others."""
        return self.name.partition("-")[0]


def train(sets: Sequence[DataSet]) -> Ranker:
    """A ranker that has seen these sets; each of them weighs the same."""
    signals: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    for data in sets:
        for ways in data.found.values():
            for candidates in ways:
                seen = candidates.documents[: len(candidates.signals)]
                relevant = np.array([document in candidates.relevant for document in seen], dtype=np.int64)
                if 0 < relevant.sum() < len(relevant):
                    signals.append(candidates.signals)
                    labels.append(relevant)
                    weights.append(np.full(len(relevant), 1 / len(ways)))
    known = lightgbm.Dataset(np.concatenate(signals), np.concatenate(labels), weight=np.concatenate(weights))
    boosters = [lightgbm.train({**_PARAMETERS, "seed": seed}, known, _ROUNDS) for seed in _SEEDS]
    roots = [tree["tree_structure"] for booster in boosters for tree in booster.dump_model()["tree_info"]]
    return Ranker(_trees(roots, share=1 / len(boosters)), tuple(sorted(data.name for data in sets)))


def _trees(roots: Sequence[dict[str, Any]], share: float) -> Trees:
    flat = [_flattened(root) for root in roots]
    size = max(len(nodes) for nodes, _ in flat)
    empty = (0, 0.0, 0, 0, 0.0)
    table = [[*nodes, *[empty] * (size - len(nodes))] for nodes, _ in flat]
    signal, threshold, left, right, value = (
        np.array([[node[part] for node in nodes] for nodes in table]) for part in range(5)
    )
    return Trees(
        signal.astype(np.int32),
        threshold,
        left.astype(np.int32),
        right.astype(np.int32),
        np.round(value * share, 6),
        max(depth for _, depth in flat),
    )


def _flattened(root: dict[str, Any]) -> tuple[list[tuple[int, float, int, int, float]], int]:
    """The nodes of a tree, the root first, and its depth."""
    nodes: list[tuple[int, float, int, int, float]] = []

    def add(node: dict[str, Any]) -> tuple[int, int]:
        place = len(nodes)
        nodes.append((0, 0.0, place, place, float(node.get("leaf_value", 0.0))))
        if "split_feature" not in node:
            return place, 0
        left, depth_left = add(node["left_child"])
        right, depth_right = add(node["right_child"])
        nodes[place] = (int(node["split_feature"]), float(f"{node['threshold']:.8g}"), left, right, 0.0)
        return place, 1 + max(depth_left, depth_right)

    _, depth = add(root)
    return nodes, depth


class _Recorder:
    """A ranker without an opinion that keeps what it has seen."""

    def __init__(self) -> None:
        self.seen: NDArray[np.float64] = np.zeros((0, len(SIGNALS)))

    def relevance(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        self.seen = signals
        return np.zeros(len(signals))


async def _collect(data: Path) -> DataSet:
    queries = read_queries(data)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(overrides={"stores": {"data": folder}}).settings
        async with running(["knowledge"], settings) as mesh, open_channel(mesh.targets["knowledge"]) as channel:
            await ingest(channel, read_documents(data / "corpus.jsonl"))
        graph = SqliteGraphStore(Path(folder) / "graph.db")
        text = SqliteTextIndex(graph)
        embedder = MiniLmEmbedder(find_model(None), cache=Path(folder) / "models")
        vectors = FaissVectorIndex(graph, Path(folder) / "vectors")
        try:
            recorder = _Recorder()
            settings_of_retriever = RetrieverSettings()
            full = RetrieverService(graph, text, vectors, embedder, settings_of_retriever, relevance=recorder.relevance)
            bare = RetrieverService(graph, text, None, None, settings_of_retriever, relevance=recorder.relevance)
            ways = {
                "encoder": (full, Profile.BALANCED),
                "no_encoder": (bare, Profile.BALANCED),
                "substitution": (full, Profile.THOROUGH),
            }
            found = {
                way: [await _ask(service, profile, recorder, query) for query in queries]
                for way, (service, profile) in ways.items()
            }
        finally:
            await vectors.close()
            await embedder.close()
            await graph.close()
    print(f"{data.name}: {len(queries)} questions", file=sys.stderr)
    return DataSet(data.name, found)


async def _ask(service: RetrieverService, profile: Profile, recorder: _Recorder, query: Query) -> Candidates:
    request = RetrievalRequest(query.text, (COLLECTION,), k=_CANDIDATES, profile=profile)
    found = service.retrieve(request, principal=ANONYMOUS, deadline=Deadline.after(_BUDGET))
    evidence = [event.source async for event in found if isinstance(event, Evidence)]
    return Candidates(recorder.seen, [source.document_id for source in evidence], query.relevant)


def figures_of(sets: Sequence[DataSet]) -> dict[str, Any]:
    """Recall at 5 of each set and way, by score alone and by a ranker that has not seen the set's family."""
    figures: dict[str, Any] = {}
    for data in sets:
        others = [other for other in sets if other.family != data.family]
        ranker = train(others) if others else None
        for way, ways in data.found.items():
            row = {"score": _mean([candidates.recall(None) for candidates in ways])}
            if ranker is not None:
                row["ranker"] = _mean([candidates.recall(ranker) for candidates in ways])
            figures.setdefault(data.name, {})[way] = row
    return figures


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("more", nargs="*", type=Path, metavar="DIR", help="Further data sets.")
    parser.add_argument("--verify", action="store_true", help="Compare the shipped ranker instead of writing it.")
    parser.add_argument("--output", type=Path, default=_SHIPPED, help="Where to write the ranker.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains, measures, and writes or compares."""
    if arguments.data is None:
        sys.exit("train-ranker needs --data DIR [DIR...], folders in BEIR layout")
    sets = [asyncio.run(_collect(data)) for data in (arguments.data, *arguments.more)]
    ranker = train(sets)
    text = dump(ranker)
    figures: dict[str, Any] = {
        "recall_at_5": figures_of(sets),
        "trained_on": list(ranker.trained_on),
        "bytes": len(text),
    }
    if not arguments.verify:
        arguments.output.write_text(text, encoding="utf-8")
        return figures
    shipped = load(arguments.output.read_text(encoding="utf-8"))
    signals = np.concatenate(
        [candidates.signals for data in sets for ways in data.found.values() for candidates in ways]
    )
    difference = float(np.abs(shipped.relevance(signals) - ranker.relevance(signals)).mean())
    if shipped.trained_on != ranker.trained_on or difference > _TOLERANCE:
        sys.exit(f"{arguments.output.name} is not what this training gives: mean difference {difference:.4f}")
    return {**figures, "identical": dump(shipped) == text, "mean_difference": round(difference, 6)}
