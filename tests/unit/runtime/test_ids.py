from loremesh_agents.runtime import ids


def test_ids_sort_by_the_time_at_which_they_were_made(monkeypatch):
    made = []
    for milliseconds in (0, 1, 1_700_000_000_000, 1_700_000_000_001, 2**48 - 1):
        monkeypatch.setattr(ids.time, "time_ns", lambda value=milliseconds: value * 1_000_000)
        made.append(ids.new_id())
    assert made == sorted(made)
    assert {len(value) for value in made} == {32}


def test_ids_differ():
    assert len({ids.new_id() for _ in range(1000)}) == 1000
