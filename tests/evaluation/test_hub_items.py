"""The items of a task come from a data set, as `datasets` reads it from a folder."""

import json

import pytest

pytest.importorskip("datasets", reason='wants datasets: pip install "jaxmem[eval]"')

from jaxmem.evaluation import read_task

TASK = {"name": "arc", "kind": "choice", "prompt": "{question}", "answer": "key"}
ROW = {"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "key": "B"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a folder of a data set and a task that names it; no hub is there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text(json.dumps(ROW) + "\n")

    def written(**source):
        line = {"task": TASK | {"choices": "choices_text"}, "dataset": source}
        (tmp_path / "task.jsonl").write_text(json.dumps(line))
        return tmp_path / "task.jsonl"

    return written


def test_rows_of_a_split_are_items_and_a_label_is_the_number_of_its_choice(write):
    task = read_task(write(path="set", split="test", labels="choices_label"))
    (item,) = task.items
    assert task.choice_texts(item) == ("3", "4") and task.answer_of(item) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "set", "split": "dev"}, "'.*set', dev, is not read"),
        ({"path": "nowhere"}, "'nowhere', test, is not read"),
        ({"path": "set"}, "item 0 of arc has the answer 'B', which is none of"),
        ({"path": "set", "labels": "letters"}, "'B' is none of letters, which is missing"),
    ],
)
def test_what_is_not_read_is_said(write, source, message):
    with pytest.raises(ValueError, match=message):
        read_task(write(**source))
