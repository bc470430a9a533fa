"""The command `generate` of a model with a chat template."""

import dataclasses
import io
import json
import re

import pytest
from chat_models import chatting

import jaxmem as jm
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


PROMPTS = """{"prompt": "CD", "id": "a"}
{"prompt": "E", "heat": 1}
{"ids": [2, 3], "max_new_tokens": 3, "logprobs": true}
"""


def test_a_file_of_prompts_is_answered_in_order_and_never_twice(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(options, "load", lambda *_, **__: chatting())
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    out = tmp_path / "answers.jsonl"
    line = ["generate", "here", "--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(out)]
    line += ["--memory", "3MB", "--max-new-tokens", "2", "--rows", "2", "--json"]

    def run(*more):
        assert cli.main([*line, *more]) == 0
        return json.loads(capsys.readouterr().out)

    found = run("--system", "E")
    assert (found["answered_now"], list(found["refused"])) == (3, ["line 2"])
    first, second, third = map(json.loads, out.read_text().splitlines())
    messages = [{"role": "system", "content": "E"}, {"role": "user", "content": "CD"}]
    assert first["ids"] == chatting().chat(messages, max_new_tokens=2).ids[0].tolist()
    assert (second["finish"], second["error"]) == ("refused", "heat is no field of a request")
    assert third["ids"] == generate(chatting(), [2, 3], max_new_tokens=3).ids[0].tolist()
    assert len(third["logprobs"]) == 3
    assert run("--system", "E")["answered_now"] == 0
    assert cli.main(line) == 2
    assert "line 1 answers none of these requests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--prompts", "a.jsonl"], "--prompts wants --memory SIZE and --out FILE"),
        (["--prompts", "a", "--prompt", "b"], "--prompts goes without --prompt"),
        (["--prompt", "CD", "--out", "b"], "--memory and --out go with --prompts FILE"),
        (["--prompts", "a", "--memory", "1kB", "--out", "b"], "and the weights take"),
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


def test_a_memory_that_holds_no_page_is_refused_with_the_least_that_does(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(options, "load", lambda *_, **__: chatting())
    prompts, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    prompts.write_text('{"prompt": "CD", "max_new_tokens": 1}\n')
    weights = jm.nbytes(chatting().params)
    line = [
        "generate",
        "here",
        "--raw",
        "--prompts",
        str(prompts),
        "--out",
        str(out),
        "--rows",
        "1",
    ]
    assert cli.main([*line, "--memory", str(weights + 1)]) == 2
    said = capsys.readouterr().err
    least = re.search(r"--memory is .*, expected at least ([\d,]+) bytes", said)
    assert "--rows 1" in said and "nbytes" not in said
    assert cli.main([*line, "--memory", least[1].replace(",", "")]) == 0
    assert json.loads(out.read_text())["finish"] == "length"


def test_a_source_without_codes_refuses_encoded_by_name(tmp_path, capsys):
    dataclasses.replace(chatting(), tokenizer=None).save(tmp_path / "dense")
    assert cli.main(["generate", str(tmp_path / "dense"), "--prompt", "CD", "--encoded"]) == 2
    assert "dense holds no codes that can be kept; leave --encoded out" in capsys.readouterr().err
    assert cli.main(["inspect", "llama-1b", "--encoded"]) == 2
    assert "llama-1b has shapes and no codes; --encoded wants" in capsys.readouterr().err
