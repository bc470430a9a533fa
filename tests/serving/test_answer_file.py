"""A file of answers goes on after any kill, and holds them in order."""

import json

import pytest

from jaxmem.serving.answer import Answer
from jaxmem.serving.answer_file import AnswerFile, request_key
from jaxmem.serving.generation_request import GenerationRequest

REQUESTS = [GenerationRequest(id, "é" * 3, stop=("x",)) for id in "abc"]
KEYS = [request_key(r, "model") for r in REQUESTS]
ANSWERS = [Answer(r.id, f"text\n{r.id}\u2028é", (1, 2), logprobs=(-0.5, -1.0)) for r in REQUESTS]


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text("utf-8").split("\n") if line]


def test_answers_come_in_any_order_and_stand_in_that_of_the_requests(tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl", KEYS)
    for i in (2, 0, 1):
        file.put(KEYS[i], ANSWERS[i])
    file.close()
    assert texts(file.path) == [a.text for a in ANSWERS]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert AnswerFile(file.path, KEYS).missing == []  # nothing is left to do


def test_a_run_killed_at_any_byte_goes_on_with_what_is_whole(tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl", KEYS)
    for i in (1, 0):
        file.put(KEYS[i], ANSWERS[i])
    data = file.part.read_bytes()
    first = data.index(b"\n") + 1
    for size in range(len(data) + 1):
        file.part.write_bytes(data[:size])
        again = AnswerFile(file.path, KEYS)
        done = [KEYS[1]] * (size >= first) + [KEYS[0]] * (size == len(data))
        assert again.missing == [key for key in KEYS if key not in done]
        assert len(file.part.read_bytes()) == (first * bool(done) if len(done) < 2 else len(data))


def test_answers_to_other_requests_are_refused(tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl", KEYS)
    file.put(KEYS[0], ANSWERS[0])
    other = [request_key(r, "another model") for r in REQUESTS]
    with pytest.raises(ValueError, match=r"a.jsonl.part, line 1 answers none of these requests"):
        AnswerFile(file.path, other)
    with pytest.raises(ValueError, match="2 of 3 requests have no answer yet"):
        file.close()
    with pytest.raises(ValueError, match="the same key"):
        AnswerFile(file.path, [KEYS[0]] * 2)
    file.part.unlink()
    file.path.write_text("notes of mine\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1 is no JSON"):
        AnswerFile(file.path, KEYS)
