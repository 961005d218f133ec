"""Which of a question's terms are worth asking for."""

from collections.abc import Mapping

_MOST_POSTINGS = 500
_MOST_TERMS = 128


def rarest(terms: Mapping[str, int]) -> tuple[str, ...]:
    """The rarest terms, until 500 passages contain one of them: at least one, at most 128.

    The commoner ones tell passages apart so little that they only cost time. So the work does not grow with the collection.

    Args:
        terms: With the number of passages that contain each.
    """
    chosen: list[str] = []
    postings = 0
    for term, count in sorted(
        ((term, count) for term, count in terms.items() if count), key=lambda pair: (pair[1], pair[0])
    ):
        if chosen and (postings + count > _MOST_POSTINGS or len(chosen) >= _MOST_TERMS):
            break
        postings += count
        chosen.append(term)
    return tuple(chosen)
