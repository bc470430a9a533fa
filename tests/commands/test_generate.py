"""The command `generate` of a model with a chat template."""

import io
import json

import pytest
from chat_models import chatting

from jaxmem import cli
from jaxmem.commands import options
from jaxmem.models import generate


@pytest.fixture
def found(monkeypatch, capsys):
    """A function of a line that gives the JSON of the command."""
    monkeypatch.setattr(options, "load", lambda *_, **__: chatting())

    def run(*line):
        assert cli.main(["generate", "here", *line, "--max-new-tokens", "2", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_model_with_a_template_answers_unless_the_text_is_raw(found):
    m = chatting()
    answer = found("--prompt", "CD", "--system", "E")
    messages = [{"role": "system", "content": "E"}, {"role": "user", "content": "CD"}]
    assert answer["messages"][:2] == messages
    assert answer["ids"] == m.chat(messages, max_new_tokens=2).ids[0].tolist()
    ids = generate(m, "CD", max_new_tokens=2).ids
    assert found("--prompt", "CD", "--raw")["ids"] == ids[0].tolist()


def test_each_line_of_the_input_is_a_message(found, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("CD\nE\n"))
    *before, answer = found("--chat")["messages"]
    assert [m["content"] for m in before if m["role"] == "user"] == ["CD", "E"]
    assert answer["content"] == chatting().chat(before, max_new_tokens=2).text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--prompt", "CD", "--raw", "--system", "E"], "--raw goes without --chat and --system"),
        ([], "--prompt is not given"),
        (["--chat"], "the input has no line"),
    ],
)
def test_options_that_do_not_go_together_are_refused(line, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(options, "load", lambda *_, **__: chatting())
    assert cli.main(["generate", "here", *line]) == 2
    assert message in capsys.readouterr().err
