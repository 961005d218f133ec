"""The judge finds what it is there to find, and nothing in histories that are as they should be."""

from dataclasses import replace

from tests.histories.model import Attempt, Look, Operation, judge

FIRST = Attempt(Operation(1, ("a", "b")), began=0, ended=1, revision=1)
SECOND = Attempt(Operation(2, ("b", "c")), began=2, ended=3, revision=2)
DELETED = Attempt(Operation(3, ("a",), deletes=True), began=4, ended=5, revision=3)
HISTORY = (FIRST, SECOND, DELETED)
AFTER_SECOND = Look(began=3.2, ended=3.5, revision=2, seen={"a": 1, "b": 2, "c": 2})
LAST = Look(began=6, ended=7, revision=3, seen={"b": 2, "c": 2})


def killed(attempt: Attempt) -> Attempt:
    return replace(attempt, ended=float("inf"), revision=None)


def counts(attempts: tuple[Attempt, ...], *looks: Look) -> tuple[int, int, int]:
    verdict = judge(attempts, looks)
    return len(verdict.lost), len(verdict.torn), len(verdict.backwards)


def test_what_happened_in_order_is_no_fault() -> None:
    assert counts(HISTORY, Look(0, 0.5, 0, {}), AFTER_SECOND, LAST) == (0, 0, 0)


def test_an_operation_of_unknown_outcome_may_have_happened_or_not() -> None:
    unknown = (FIRST, SECOND, killed(DELETED))
    assert counts(unknown, AFTER_SECOND, LAST) == (0, 0, 0)
    assert counts(unknown, AFTER_SECOND, replace(AFTER_SECOND, began=6, ended=7)) == (0, 0, 0)
    assert counts((killed(FIRST), SECOND, DELETED), AFTER_SECOND, LAST) == (0, 0, 0)
    # Not twice, and not in the past.
    again = replace(LAST, revision=4)
    assert counts(unknown, LAST, again) == (0, 1, 0)
    late = replace(killed(SECOND), began=3.6)
    assert counts((FIRST, late), AFTER_SECOND) == (0, 1, 0)


def test_an_acknowledged_operation_that_a_later_snapshot_lacks_is_lost() -> None:
    assert counts(HISTORY, replace(AFTER_SECOND, began=6, ended=7)) == (1, 0, 0)
    assert counts((FIRST, replace(SECOND, revision=1))) == (1, 0, 0)


def test_a_part_of_a_write_is_torn() -> None:
    assert counts(HISTORY, replace(AFTER_SECOND, seen={"a": 1, "b": 2})) == (0, 1, 0)
    assert counts(HISTORY, replace(AFTER_SECOND, seen=None)) == (0, 1, 0)
    assert counts(HISTORY, replace(AFTER_SECOND, seen={"a": 1, "b": 1, "c": 2})) == (0, 1, 0)


def test_a_refused_operation_that_shows_nevertheless_is_torn() -> None:
    refused = replace(killed(SECOND), refused=True)
    assert counts((FIRST, refused), AFTER_SECOND) == (0, 1, 0)


def test_a_reader_that_goes_back_in_time_is_seen() -> None:
    unknown = (FIRST, killed(SECOND))
    back = Look(4, 4.5, 1, {"a": 1, "b": 1})
    assert counts(unknown, AFTER_SECOND, back) == (0, 0, 1)
    # Side by side, either may be first.
    assert counts(unknown, AFTER_SECOND, replace(back, began=3.4)) == (0, 0, 0)
