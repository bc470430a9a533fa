"""A task is one file; what is missing in it is said with its line or the number of its item."""

import dataclasses
import json
import sys

import pytest

from jaxmem.evaluation import Task, published_tasks, read_task, write_task
from jaxmem.evaluation.prompt_template import fill

SUM = {"question": "2 + 2?", "texts": ["3", "4"], "answer": "4", "topic": "sums"}
CHOICE = {"name": "sums", "kind": "choice", "prompt": "{question}", "choices": "texts"}
TASKS = {
    "choice": Task(**CHOICE, items=(SUM, SUM | {"answer": 0}), group="topic", metric="acc_norm"),
    "generation": Task("say", "generation", (SUM,), "{question}", metric="f1", until=(".",)),
    "pairs": Task("alike", "pairs", ({"a": "x", "b": "y", "answer": 2.5},), choices=("{a}", "{b}")),
    "retrieval": Task(
        "find", "retrieval", ({"q": "sea", "answer": ["1"]},), "{q}", documents={"1": "a boat"}
    ),
    "probe": Task(
        "mood", "probe", ({"t": "ok", "answer": 1},), "{t}", train=({"t": "no", "answer": 0},)
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_file_gives_the_task_that_was_written(kind, tmp_path):
    write_task(tmp_path / "task.jsonl", TASKS[kind])
    read = read_task(tmp_path / "task.jsonl")
    assert read == TASKS[kind] and read.sha256 == TASKS[kind].sha256
    assert dataclasses.replace(read, delimiter="|").sha256 != read.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": ()}, "sums has no items"),
        ({"kind": "essay"}, "kind is 'essay', expected choice"),
        ({"metric": "bleu"}, "metric is 'bleu', expected acc, acc_norm"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"prompt": "{text}"}, "item 0 of sums: the template .* wants the field 'text'; the item"),
        ({"prompt": "{question.__class__}"}, "'question.__class__', expected a name"),
        ({"prompt": "{question"}, "the template"),
        ({"choices": ()}, "sums has no choices"),
        ({"choices": "question"}, "'question' is '2 . 2.', expected a list of texts"),
        ({"choices": ("{question}",)}, "expected at least 2 texts"),
        ({"group": "age"}, "item 0 of sums has no field 'age'"),
        ({"answer": "gold"}, "item 0 of sums has no field 'gold'"),
        ({"items": (SUM, SUM | {"answer": 2})}, "item 1 of sums has the answer 2"),
        ({"items": (SUM, "text")}, "item 1 of sums is 'text', expected fields"),
        ({"kind": "retrieval"}, "no documents"),
        ({"kind": "probe"}, "no items to train on"),
        ({"kind": "pairs"}, "expected the templates of two sentences"),
        ({"kind": "generation", "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"kind": "generation", "prompt": "hello"}, "expected a field in it"),
    ],
)
def test_what_a_task_cannot_be_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        Task(**({"items": (SUM,), **CHOICE} | change))


@pytest.mark.parametrize("until", [{"end": "."}, ".", 3, (1,)])
def test_ends_that_are_no_texts_are_refused(until):
    with pytest.raises(TypeError, match="until"):
        Task(items=(SUM,), **CHOICE, until=until)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: expected"),
        ([SUM], "line 1: expected"),
        ([{"task": CHOICE}], "no items"),
        ([{"task": CHOICE | {"shots": 3}}, SUM], "no field 'shots'"),
        ([{"task": {"name": "sums"}}, SUM], "kind"),
        ([{"task": CHOICE}, {"document": "a"}, SUM], "line 2: a document has no text"),
        ([{"task": CHOICE | {"until": {"end": "."}}}, SUM], "until"),
        ([{"task": CHOICE}, [SUM]], "line 2 is a list"),
        ([{"task": CHOICE, "dataset": "squad"}], "dataset is 'squad', expected"),
        ([{"task": CHOICE, "dataset": {"split": "test"}}], "expected texts: path"),
        ([{"task": CHOICE, "dataset": {"path": "x", "shots": "1"}}], "expected texts: path"),
    ],
)
def test_what_a_file_cannot_hold_is_said(lines, message, tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=message):
        read_task(path)


def test_a_data_set_wants_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"task": CHOICE, "dataset": {"path": "x"}}))
    with pytest.raises(ImportError, match=r"jaxmem\[eval\]"):
        read_task(path)


def test_a_broken_line_is_said_and_a_missing_file_is_not_found(tmp_path):
    (tmp_path / "task.jsonl").write_text('{"task": ')
    with pytest.raises(ValueError, match=r"task.jsonl, line 1 is no JSON"):
        read_task(tmp_path / "task.jsonl")
    with pytest.raises(FileNotFoundError, match=r"other.jsonl"):
        read_task(tmp_path / "other.jsonl")


def test_braces_are_doubled_and_a_sample_is_even():
    assert fill("{{{a}}}", {"a": 1}) == "{1}"
    task = dataclasses.replace(TASKS["choice"], items=tuple(SUM | {"n": i} for i in range(10)))
    assert [item["n"] for item in task.sample(3).items] == [0, 3, 6]
    assert task.sample(99) is task
    with pytest.raises(ValueError, match="0 items of sums"):
        task.sample(0)


def test_the_published_sets_are_read_whole(shared_data):
    tasks = published_tasks(shared_data)
    counts = {name: len(task.items) for name, task in tasks.items()}
    assert (counts["arc_easy"], counts["piqa"], counts["crows_pairs"]) == (2376, 1838, 1508)
    assert (counts["sst2"], counts["stsb"], counts["tnews"], counts["eprstmt"]) == (
        872,
        1500,
        2010,
        610,
    )
    assert len(tasks["multi30k"].items) == 1014 and tasks["multi30k"].metric == "chrf"
    assert tasks["multi30k"].items[1]["german"].startswith("Ein Mann schläft")
    item = tasks["arc_easy"].items[1]
    assert tasks["arc_easy"].choice_texts(item)[item["answer"]] == "breathing mask"
    pro, anti = tasks["winobias"].choice_texts(tasks["winobias"].items[1])
    assert [a for a in zip(pro.split(), anti.split()) if a[0] != a[1]] == [("her", "his")]


def test_a_file_that_is_not_as_published_is_named(tmp_path):
    (tmp_path / "sst2_dev.tsv").write_text("a sentence without a label\n")
    with pytest.raises(ValueError, match=r"sst2_dev.tsv is not as sst2 is published"):
        published_tasks(tmp_path)
    (tmp_path / "sst2_dev.tsv").unlink()
    for language in ("de", "en"):
        (tmp_path / f"multi30k_val.{language}.gz").write_bytes(b"no gzip file")
    with pytest.raises(ValueError, match=r"multi30k_val.de.gz is not as multi30k is published"):
        published_tasks(tmp_path)
