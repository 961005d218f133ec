"""What a person sees of an answer in a terminal."""

import pytest
from loremesh.v1 import coordinator_service_pb2 as pb

from loremesh_agents.cli.answer_view import AnswerView


def test_calls_are_shown_beside_the_answer_and_a_terminal_obeys_nothing_in_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = AnswerView(why=False)
    for event in (
        {"tool_call": {"name": "retrieve", "arguments_json": '{"question":\n"What\x1b[2J is fire?"}'}},
        {"tool_result": {"name": "retrieve", "text": "[2] Fire", "evidence_ids": ["E2", "E3"]}},
        {"tool_result": {"name": "look", "text": "There is no tool 'look'.", "failed": True}},
        {"tool_result": {"name": "retrieve", "text": "Nothing was found."}},
        {"delta": {"text": "Hot."}},
        {"completion": {}},
    ):
        view.show(pb.AskResponse(**event))
    shown = capsys.readouterr()
    assert shown.out == "Hot.\n"
    assert "\x1b" not in shown.err.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert 'retrieve {"question": "What [2J is fire?"}' in shown.err
    assert "retrieve: found E2, E3" in shown.err
    assert "look: There is no tool 'look'." in shown.err
    assert "retrieve: found nothing" in shown.err
