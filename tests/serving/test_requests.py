"""A request is checked where it is made, and a bad line of a file is refused by its name."""

import dataclasses

import numpy as np
import pytest

from jaxmem.serving.generation_request import GenerationRequest
from jaxmem.serving.prompt_file import Refusal, read_requests
from jaxmem.serving.prompt_order import depth_first
from jaxmem.serving.stop_texts import first_stop, safe_length


def test_a_request_can_be_a_key_of_a_dict_whatever_its_ids_were():
    ids = [GenerationRequest("a", ids=x) for x in ([1, 2], (1, 2), np.array([1, 2]))]
    assert len(set(ids)) == 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "none of them given"),
        ({"prompt": "a", "ids": [1]}, ValueError, "prompt and ids given"),
        ({"prompt": ""}, ValueError, "prompt is empty"),
        ({"ids": []}, ValueError, "ids is empty"),
        ({"ids": [[1], [2]]}, TypeError, "integers"),
        ({"ids": [1.5]}, TypeError, "integers"),
        ({"ids": "12"}, TypeError, "integers"),
        ({"messages": "hello"}, TypeError, "a list of messages"),
        ({"prompt": 3}, TypeError, "a string or None as its prompt"),
        ({"prompt": "a", "temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"prompt": "a", "top_p": 0.0}, ValueError, "top_p is 0.0"),
        ({"prompt": "a", "top_k": 0}, ValueError, "top_k is 0"),
        ({"prompt": "a", "max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ({"prompt": "a", "repetition_penalty": 0.0}, ValueError, "repetition_penalty is 0.0"),
        ({"prompt": "a", "seed": -1}, ValueError, "seed is -1"),
        ({"prompt": "a", "seed": 2**31}, ValueError, "at most 2147483647"),
        ({"prompt": "a", "stop": ["b", ""]}, ValueError, "not empty"),
        ({"prompt": "a", "stop": 3}, TypeError, "a string or a list of strings"),
        ({"prompt": "a", "logprobs": 1}, TypeError, "a bool as its logprobs"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        GenerationRequest("a", **fields)


LINES = """
{"prompt": "A"}
{"prompt": "B", "id": "b", "temperature": 0.5}
{"prompt": "C", "id": "b"}
{"prompt": "D", "id": 7
[1]
{"prompt": "E", "heat": 1}
{"prompt": "F", "top_p": 3}
{"id": 7, "ids": [1, 2], "max_new_tokens": null}
"""


def test_good_lines_are_read_beside_bad_ones(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(LINES, encoding="utf-8")
    found = read_requests(path, defaults={"max_new_tokens": 5, "temperature": 0.1})
    good = [x for x in found if isinstance(x, GenerationRequest)]
    assert [(x.id, x.temperature, x.max_new_tokens) for x in good] == [
        ("line 2", 0.1, 5),
        ("b", 0.5, 5),
        ("7", 0.1, 5),
    ]
    bad = {x.id: x.error for x in found if isinstance(x, Refusal)}
    assert list(bad) == ["b", "line 5", "line 6", "line 7", "line 8"]
    wanted = "of a line before it", "is no JSON", "holds a list", "heat is no field", "top_p is 3"
    assert all(text in error for text, error in zip(wanted, bad.values(), strict=True))


def test_a_file_without_requests_is_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="has no request"):
        read_requests(path)
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_requests(path)
    with pytest.raises(ValueError, match="defaults have 'heat'"):
        read_requests(path, defaults={"heat": 1})
    with pytest.raises(ValueError, match="temperature is -1"):
        read_requests(path, defaults={"prompt": "a", "temperature": -1})


def test_prompts_that_share_a_prefix_stand_together():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 3, rng.integers(1, 6)) * 300 for _ in range(60)]
    order = depth_first(prompts)
    assert [tuple(prompts[i]) for i in order] == sorted(map(tuple, prompts))
    assert sorted(order) == list(range(60))


@pytest.mark.parametrize("stops", [("abc",), ("cb", "ca"), ("aa", "a")])
def test_what_was_shown_is_never_taken_back(stops):
    rng, text = np.random.default_rng(1), ""
    shown, end = 0, None
    for letter in rng.choice(list("abc"), 40):
        text += letter
        end = first_stop(text, stops)
        if end is not None:
            break
        shown = max(shown, safe_length(text, stops))
    assert end is not None and shown <= end


def test_a_request_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationRequest("a", "b").seed = 1
