"""Files become documents of which the right tokens are learnt, or one line says what is wrong."""

import json

import numpy as np
import pytest

import jaxmem as jm

encode = lambda text: list(text.encode())
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "so?"},
    {"role": "assistant", "content": "no"},
]


def chat(conversations, prompts):
    """A template: <role>content; for each message, and the role of an answer that follows."""
    text = lambda m: f"<{m['role'][0]}>{m['content']};"
    return ["".join(map(text, c)) + "<a>" * p for c, p in zip(conversations, prompts)]


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def learnt(documents):
    """Of each document the text, and the text that is learnt."""
    items = [documents[i] for i in range(len(documents))]
    return [(bytes(x["ids"].tolist()), bytes(x["ids"][x["mask"]].tolist())) for x in items]


@pytest.mark.parametrize("folder", [None, "corpus"])
def test_each_kind_of_line_learns_what_it_should(tmp_path, folder):
    rows = [{"text": "all"}, {"prompt": "1+1=", "completion": "2"}, {"messages": TURNS}, ""]
    path = lines(tmp_path / "x.jsonl", *rows)
    kept = None if folder is None else tmp_path / folder
    found = jm.data.read(path, encode, begin=[94], end=[36], chat=chat, folder=kept)
    assert learnt(found) == [
        (b"^all$", b"all$"),
        (b"^1+1=2$", b"2$"),
        (b"<u>hi;<a>yes;<u>so?;<a>no;", b"yes;no;"),
    ]
    names = {"x.jsonl"} | ({folder} if folder else set())
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_text_file_is_one_text_or_what_stands_between_separators(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n \n")
    assert learnt(jm.data.read(tmp_path / "a.txt", encode))[0][0] == b"one\n\ntwo\n\n \n"
    found = jm.data.read([tmp_path / "a.txt"], encode, separator="\n\n")
    assert [text for text, _ in learnt(found)] == [b"one", b"two"]


def test_a_long_text_is_encoded_in_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmem.data.text_parts._PIECE", 10)
    text = "".join(f"line {i}\n" for i in range(20)) + "end"
    (tmp_path / "a.txt").write_text(text)
    parts = []
    found = jm.data.read(tmp_path / "a.txt", lambda part: parts.append(part) or encode(part))
    assert bytes(found[0]["ids"].tolist()) == text.encode()
    assert len(parts) > 5 and all(part.endswith("\n") for part in parts[:-1])


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("x.txt", " \n", "x.txt has no text"),
        ("x.jsonl", "", "x.jsonl has no text"),
        ("x.jsonl", "{", "x.jsonl, line 1 is no JSON"),
        ("x.jsonl", {"txt": "a"}, r'line 1 is .*, expected the fields "text", or "prompt"'),
        ("x.jsonl", {"text": 3}, "line 1 is"),
        ("x.jsonl", {"prompt": "a", "completion": ""}, "line 1: nothing is learnt of it"),
        ("x.jsonl", {"text": ""}, "line 1: nothing is learnt"),
        ("x.jsonl", {"messages": []}, "line 1 has messages"),
        ("x.jsonl", {"messages": TURNS[:1]}, "no message is the assistant's"),
        ("x.JSONL", {"text": "\ud800"}, "line 1: it has half of a surrogate pair"),
    ],
)
def test_what_has_nothing_to_learn_is_named_with_its_line(tmp_path, name, row, message):
    path = lines(tmp_path / name, row)
    with pytest.raises(ValueError, match=message):
        jm.data.read(path, encode, chat=chat, folder=tmp_path / "corpus")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_messages_without_a_template_and_a_template_that_changes_turns_are_refused(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"messages": TURNS})
    with pytest.raises(ValueError, match="line 1 has messages, and no chat template"):
        jm.data.read(path, encode)
    last = lambda c, p: [f"{len(m)} messages" + t for m, t in zip(c, chat(c, p))]
    with pytest.raises(ValueError, match="writes a turn in another way once more follows"):
        jm.data.read(path, encode, chat=last)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    for name, place in (("x.txt", r"x\.txt"), ("x.jsonl", r"x\.jsonl, line 1")):
        (tmp_path / name).write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=f"{place} is no UTF-8 text"):
            jm.data.read(tmp_path / name, encode)
    with pytest.raises(ValueError, match="files are empty"):
        jm.data.read([], encode)


def test_a_mark_of_the_byte_order_is_no_part_of_a_text(tmp_path):
    for name, text in (("a.txt", "ab"), ("a.jsonl", '{"text": "ab"}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert learnt(jm.data.read(tmp_path / name, encode))[0][0] == b"ab"


def test_a_completion_has_the_tokens_that_follow_its_prompt(tmp_path):
    spaced = lambda text: encode(" " + text)  # as SentencePiece does
    path = lines(tmp_path / "x.jsonl", {"prompt": "a b", "completion": "cd"})
    assert learnt(jm.data.read(path, spaced)) == [(b" a bcd", b"cd")]


def test_a_text_longer_than_the_context_is_refused_or_split(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"text": "ab"}, {"prompt": "a" * 9, "completion": "bcd"})
    documents = jm.data.read(path, encode)
    with pytest.raises(ValueError, match="has 12 tokens, and a row 8"):
        jm.data.PackedRows(documents, 8)
    rows = jm.data.PackedRows(documents, 8, longer="split")
    assert sorted(int(row["mask"].sum()) for row in rows) == [4]  # cd, and the b of both texts
    assert np.concatenate([row["ids"][row["mask"]] for row in rows]).size == 4
