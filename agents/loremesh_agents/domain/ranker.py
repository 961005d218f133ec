"""Boosted trees that order the best candidates anew: how they are stored and evaluated. `bench/train_ranker.py` trains them.

Friedman, "Greedy Function Approximation: A Gradient Boosting Machine" (2001), with a logistic loss: the trees' sum is the log-odds that a passage is
relevant. Evaluated with arrays, so that serving needs no library for learning.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
SIGNALS = (
    "cosine",
    "text",
    "prior",
    "gain",
    "first_gain",
    "score",
    "score_gap",
    "rank",
    "cosine_rank",
    "text_rank",
    "own_rank",
    "coverage",
    "new_coverage",
    "trail",
    "log_mentions",
    "log_titles",
    "seed_rank",
    "seed_score",
    "seed_cosine",
    "names_itself",
    "substituted",
    "substituted_rank",
)
"""What the trees see of a candidate, in the order of the columns; `Ranking.signals` says what each is."""


class RankerRefused(ValueError):
    """A ranker's text is damaged, or of another version."""


@dataclass(frozen=True)
class Trees:
    """Binary trees with a number in each leaf, node by node in arrays of shape (trees, nodes).

    Attributes:
        signal: Column that a node looks at.
        threshold: Values up to it go left.
        left: Node below on the left; a leaf is below itself.
        right: Node below on the right; a leaf is below itself.
        value: What a leaf adds.
        depth: Longest way from a root to a leaf.
    """

    signal: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    depth: int

    def sum(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the trees add up to for each row, shape (n,)."""
        signal, threshold, left, right, value, roots = self._joined
        flat = rows.ravel()
        starts = np.arange(len(rows))[:, None] * rows.shape[1]
        node = np.tile(roots, (len(rows), 1))
        for _ in range(self.depth):
            goes_left = flat[starts + signal[node]] <= threshold[node]
            node = np.where(goes_left, left[node], right[node])
        return np.asarray(value[node].sum(axis=1), dtype=np.float64)

    @cached_property
    def _joined(self) -> "_Joined":
        """The nodes of all trees in a row, whose places are found faster than those in a table; with the root of each tree."""
        roots = np.arange(len(self.signal)) * self.signal.shape[1]
        left, right = [(side + roots[:, None]).ravel() for side in (self.left, self.right)]
        return _Joined(self.signal.ravel(), self.threshold.ravel(), left, right, self.value.ravel(), roots)


class _Joined(NamedTuple):
    signal: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: NDArray[np.float64]
    roots: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Ranker:
    """A trained ranker.

    Attributes:
        trees: Its trees.
        trained_on: Names of the data sets that it has seen.
    """

    trees: Trees
    trained_on: tuple[str, ...]

    def relevance(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that each candidate is relevant, shape (n,), for signals of shape (n, len(SIGNALS))."""
        return np.asarray(1.0 / (1.0 + np.exp(-self.trees.sum(signals))), dtype=np.float64)


def dump(ranker: Ranker) -> str:
    """The ranker as JSON, with a checksum, one line a tree."""
    trees = ranker.trees
    rows = [
        {
            "signal": trees.signal[tree].tolist(),
            "threshold": trees.threshold[tree].tolist(),
            "left": trees.left[tree].tolist(),
            "right": trees.right[tree].tolist(),
            "value": trees.value[tree].tolist(),
        }
        for tree in range(len(trees.signal))
    ]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = {"format": FORMAT, "signals": SIGNALS, "trained_on": ranker.trained_on, "depth": trees.depth}
    checksum = _checksum(head, rows)
    return f'{json.dumps({**head, "checksum": checksum})[:-1]}, "trees": [\n{lines}\n]}}\n'


def load(text: str) -> Ranker:
    """Reads what `dump` has written.

    Raises:
        RankerRefused: It is damaged, of another format, or sees other signals.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        rows: list[Mapping[str, Any]] = content.pop("trees")
        checksum = content.pop("checksum")
    except (ValueError, KeyError, AttributeError) as error:
        raise RankerRefused(f"it is damaged: {error}") from error
    if content.get("format") != FORMAT:
        raise RankerRefused(f"it has format {content.get('format')}, this build reads {FORMAT}")
    if tuple(content.get("signals", ())) != SIGNALS:
        raise RankerRefused("it was trained on other signals than this build computes")
    if checksum != _checksum(content, rows):
        raise RankerRefused("its checksum does not fit its content")
    trees = Trees(
        np.array([row["signal"] for row in rows], dtype=np.int32),
        np.array([row["threshold"] for row in rows], dtype=np.float64),
        np.array([row["left"] for row in rows], dtype=np.int32),
        np.array([row["right"] for row in rows], dtype=np.int32),
        np.array([row["value"] for row in rows], dtype=np.float64),
        content["depth"],
    )
    return Ranker(trees, tuple(content["trained_on"]))


def _checksum(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([head, rows], sort_keys=True).encode()).hexdigest()
