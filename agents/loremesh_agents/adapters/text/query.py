"""Which terms of a question a text index asks for."""

from collections.abc import Mapping

_MOST_POSTINGS = 500


def rarest_terms(terms: Mapping[str, int]) -> list[str]:
    """The rarest of the terms, until 500 passages contain one of them; at least one, and none that no passage contains.

    The commoner ones tell passages apart so little that they only cost time. So the work does not grow with the collection.

    Args:
        terms: Search terms with the number of passages that contain each.
    """
    chosen: list[str] = []
    postings = 0
    for term, count in sorted(
        ((term, count) for term, count in terms.items() if count), key=lambda pair: (pair[1], pair[0])
    ):
        if chosen and postings + count > _MOST_POSTINGS:
            break
        postings += count
        chosen.append(term)
    return chosen
