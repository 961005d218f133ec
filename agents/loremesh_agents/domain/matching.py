"""How well passages fit a question by themselves: BM25 and cosine, exactly, whichever engine proposed the passages.

BM25 is that of Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with the idf of Lucene, ln(1 + (N - df + 0.5) / (df + 0.5)).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.retrieval import PassageFeatures, TermStatistics

K1 = 0.9
B = 0.4


def inverse_frequencies(terms: Sequence[str], statistics: TermStatistics) -> NDArray[np.float64]:
    """The idf of each term, shape (terms,)."""
    frequencies = np.array([statistics.document_frequencies.get(term, 0) for term in terms], dtype=np.float64)
    return np.log1p((statistics.passage_count - frequencies + 0.5) / (frequencies + 0.5))


def bm25(features: PassageFeatures, terms: Sequence[str], statistics: TermStatistics) -> NDArray[np.float64]:
    """BM25 of each passage for the question's terms, shape (n,)."""
    if not terms or not statistics.passage_count:
        return np.zeros(len(features.refs))
    idf = inverse_frequencies(terms, statistics)
    counts = features.term_frequencies.astype(np.float64)
    norm = K1 * (1 - B + B * features.lengths.astype(np.float64) / max(statistics.mean_length, 1e-9))
    return np.asarray((idf * counts * (K1 + 1) / (counts + norm[:, None])).sum(axis=1), dtype=np.float64)


def cosine(features: PassageFeatures, question: NDArray[np.float32] | None) -> NDArray[np.float64] | None:
    """Cosine of each passage's vector and the question's, shape (n,); 0 for passages without one, None without a question vector.

    Raises:
        ValueError: The dimensions differ, or a vector is not finite.
    """
    if question is None:
        return None
    if not np.isfinite(question).all():
        raise ValueError("the question's vector holds values that are not finite")
    if not features.has_vector.any():
        return np.zeros(len(features.refs))
    if features.vectors.shape[1] != question.shape[0]:
        raise ValueError(
            f"the question's vector has {question.shape[0]} dimensions, those of the passages {features.vectors.shape[1]}"
        )
    with np.errstate(invalid="ignore"):  # an infinite value is reported below
        found = np.asarray(features.vectors @ question, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(found))
    if broken.size:
        raise ValueError(f"the vector of {features.passage_ids[broken[0]]} holds values that are not finite")
    return found
