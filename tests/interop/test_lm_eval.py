"""lm-evaluation-harness runs our models, with the loglikelihoods that they give."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason='wants lm-eval: pip install "jaxmem[eval]"')

from command_lines import CONTEXT, model_folder
from lm_eval.api.instance import Instance

import jaxmem as jm
from jaxmem.interop.lm_eval import JaxmemLM, main

TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def lm(folder):
    return JaxmemLM(str(folder / "small"), encoded=True)


def asked(kind, *arguments):
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def logprob(lm, context, text):
    ids = lm.model.tokenizer.encode(context + text).ids
    padded = np.array([ids + [0] * (CONTEXT - len(ids))], np.int32)
    rows = np.asarray(jax.nn.log_softmax(lm.model.apply(lm.model.params, padded)[0]))
    at = np.arange(len(ids) - len(text) - 1, len(ids) - 1)
    return rows[at, ids[-len(text) :]].sum()


def test_loglikelihoods_are_those_of_the_encoded_model(lm):
    assert any(map(jm.is_encoded, jax.tree.leaves(lm.model.params, is_leaf=jm.is_encoded)))
    pairs = [("the best", " of times"), ("the best", " of"), ("the worst", " of times")]
    for (score, _), pair in zip(lm.loglikelihood(asked("loglikelihood", *pairs)), pairs):
        assert score == pytest.approx(logprob(lm, *pair), abs=1e-3)


def test_a_long_text_is_scored_in_windows_and_a_long_context_loses_its_beginning(lm):
    text = "it was the best of times " * 8
    (rolling,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert np.isfinite(rolling) and rolling < 0
    long, short = (
        lm.loglikelihood(asked("loglikelihood", (t, "x"))) for t in (text, text[-CONTEXT:])
    )
    assert long[0][0] == pytest.approx(short[0][0], abs=1e-3)


def test_a_text_is_generated_up_to_where_it_ends(lm):
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    (text,) = lm.generate_until(asked("generate_until", ("the best", options)))
    end = {"until": [text[-1]], "max_gen_toks": 6, "temperature": 0.0}
    (cut,) = lm.generate_until(asked("generate_until", ("the best", end)))
    assert text and cut == text[: text.index(text[-1])]
    with pytest.raises(ValueError, match="'num_beams': 3"):
        lm.generate_until(asked("generate_until", ("a", {"num_beams": 3})))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"max_length": 1}, "max_length is 1"), ({"device": "cuda:1"}, "device is 'cuda:1'")],
)
def test_an_option_that_cannot_be_is_said(option, message, folder):
    with pytest.raises(ValueError, match=message):
        JaxmemLM(str(folder / "model"), **option)


@pytest.mark.filterwarnings("ignore")  # of the harness and its packages
def test_the_command_line_of_the_harness_knows_our_models(folder, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    items = [
        {"question": f"it was {i}", "choices": ["best", "worst"], "answer": i % 2} for i in range(6)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "yaml").mkdir()
    (folder / "yaml" / "tiny.yaml").write_text(TASK.replace("PATH", str(folder / "items.jsonl")))
    line = ["run", "--model", "jaxmem", "--model_args", f"pretrained={folder / 'model'}"]
    line += ["--tasks", "tiny", "--include_path", str(folder / "yaml")]
    main([*line, "--output_path", str(folder / "results")])
    (path,) = (folder / "results").rglob("results*.json")
    found = json.loads(path.read_text())["results"]["tiny"]
    lm = JaxmemLM(str(folder / "model"))
    right = [
        int(logprob(lm, x["question"], " worst") > logprob(lm, x["question"], " best"))
        == x["answer"]
        for x in items
    ]
    assert found["acc,none"] == pytest.approx(np.mean(right))
