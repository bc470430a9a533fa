"""A card says what compression changed; a model beside itself differs in nothing."""

import dataclasses
import json
import shutil

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_lines import found, run
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.evaluation import Task, card_rows, compare_cards, write_task
from jaxmem.evaluation.card_columns import COLUMNS
from jaxmem.evaluation.model_bytes import space_of
from jaxmem.evaluation.occlusion import attribution_agreement, occlusion
from jaxmem.evaluation.text_noise import noisy, noisy_task
from jaxmem.evaluation.unwanted_words import holds_words

CONTEXT = 9
WORDS = ["?", "good", "bad", "a", "film", "and", "so", "the", "story", "was"]
ITEMS = tuple(
    {
        "text": " ".join(np.random.default_rng(i).permutation(WORDS[3:])[:4]),
        "answer": i % 2,
        "kind": kind,
    }
    for i, kind in enumerate("ab" * 5)
)
TASK = Task("mood", "choice", ITEMS, "{text}", ("good", "bad"))
GROUPS = Task("pairs", "choice", ITEMS, "", ("the {text}", "a {text}"), group="kind")


def tokenizer_of(words):
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama of ten words, the same in 8 bits, two tasks and a text."""
    folder = tmp_path_factory.mktemp("card")
    sizes = {"width": 16, "ffn": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}
    config = llama.Config(vocab=len(WORDS), context=CONTEXT, **sizes)
    ids = jnp.zeros((1, 1), jnp.int32)
    params = cheap_jit.jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)  # surer answers
    model = jm.models.Model(config, params, tokenizer_of(WORDS), "random")
    model.save(folder / "model")
    model.save(folder / "small", jm.encode(params, jm.choose(params, {".*/kernel": jm.Int(8)})))
    (folder / "small" / "fit.json").write_text('{"seconds": 2.5, "calibration": {}}')
    (folder / "tasks").mkdir()
    for task in (TASK, GROUPS):
        write_task(folder / "tasks" / f"{task.name}.jsonl", task)
    (folder / "a.txt").write_text(" ".join(WORDS[1 + i * i % 9] for i in range(4 * CONTEXT)))
    (folder / "b.txt").write_text("the film was so good and bad a story " * 5)
    return folder


@pytest.fixture(scope="module")
def line(folder):
    places = {"reference": "model", "data": "tasks", "out": "small.card"}
    places |= {"seen": "a.txt", "unseen": "b.txt", "words": "words.txt", "track": "track"}
    (folder / "words.txt").write_text("bad\n\nawful\n")
    options = (word for name, place in places.items() for word in (f"--{name}", folder / place))
    texts = ("--text", folder / "a.txt", folder / "b.txt")
    return ("card", folder / "small", *options, *texts)


@pytest.fixture(scope="module")
def made(line):
    return found(*line)


def test_a_card_has_every_column_beside_the_noise_floor(made, folder):
    rows = made["rows"]
    assert list(rows) == ["dense", "dense in bfloat16", "model"]
    assert all(set(COLUMNS) - set(row) <= {"time"} for row in rows.values())
    assert "time" not in rows["dense in bfloat16"]  # its weights are rounded, and no more
    space = rows["model"]["space"]
    assert space["resident"] < rows["dense"]["space"]["resident"]
    assert space["file"] == sum(x.stat().st_size for x in (folder / "small").iterdir())
    assert space["cache_per_token"] == 2 * 16 * 4
    assert rows["dense in bfloat16"]["space"]["cache_per_token"] == 2 * 16 * 2
    embedding = len(WORDS) * 16 * 4
    assert space["resident"] - space["read_per_token"] == embedding - embedding // len(WORDS)
    assert {"first_token", "token"} < set(rows["model"]["time"])
    assert rows["model"]["time"]["encode"] == 2.5 and "encode" not in rows["dense"]["time"]
    privacy = rows["model"]["privacy"]
    assert privacy["seen"] == 4 and 0 <= privacy["auc"]["mean"] <= 1
    kl = {name: row["loss"]["kl"]["mean"] for name, row in rows.items()}
    assert kl["dense"] == pytest.approx(0, abs=1e-6)
    assert kl["dense"] < kl["dense in bfloat16"] and kl["dense"] < kl["model"]
    loss = rows["model"]["loss"]
    kls = [text["kl"]["mean"] for text in loss["by_text"].values()]
    assert list(loss["by_text"]) == ["a", "b"] and loss["tokens"] == 8 * (CONTEXT - 1)
    assert np.mean(kls) == pytest.approx(kl["model"], rel=1e-6)
    assert set(rows["model"]["robustness"]) == {"mood.typo", "bit_flips"}
    flips = rows["model"]["robustness"]["bit_flips"]
    assert list(flips) == ["codes", "scales", "weights"]
    assert set(rows["model"]["fairness"]["pairs"]["groups"]) == {"a", "b"}
    continued = {name: row["fairness"]["continuations"] for name, row in rows.items()}
    assert continued["dense"]["changed"] == 0 and continued["dense"]["texts"] == 9
    written = (
        folder / "small.card" / "items" / "dense" / "columns" / "continuations.jsonl"
    ).read_text()
    texts = [json.loads(line) for line in written.splitlines()[1:]]
    shares = [("bad" in x["text"].split()) for x in texts]
    assert continued["dense"]["with_words"]["mean"] == np.mean(shares)
    assert "Mean    KLD" in made["llama_cpp"]
    assert made["origin"]["command"].startswith("jaxmem")
    assert "params.jm" in made["origin"]["sources"]["model"]["files"]
    assert made["origin"]["plan"]["head/kernel"].startswith("Int")


def test_the_dense_row_differs_from_itself_in_nothing(made):
    row = made["rows"]["dense"]
    for task in (*row["tasks"].values(), row["robustness"]["mood.typo"]):
        assert (task["changed"], task["right_to_wrong"], task["total_variation"]) == (0, 0, 0)
    assert row["loss"]["perplexity_ratio"]["mean"] == 1 == row["loss"]["same_top"]["mean"]
    assert row["attribution"]["occlusion"]["rank_correlation"]["mean"] == pytest.approx(1)
    assert row["fairness"]["pairs"]["gap"] == 0


def test_a_word_counts_as_a_whole():
    assert holds_words("so BAD.", ["bad"]) and not holds_words("badly, unbad", ["bad"])
    assert holds_words("a bad-tempered man", ["bad"]) and not holds_words("bad", [])


def test_a_table_a_model_card_a_picture_and_events_are_written(made, folder):
    written = folder / "small.card"
    assert json.loads((written / "card.json").read_text()) == made
    assert "| tasks mood score |" in (written / "README.md").read_text()
    assert (written / "card.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (folder / "track").iterdir()
    assert b"tasks/mood/changed" in events.read_bytes()


def test_a_suite_that_was_stopped_goes_on(made, line, folder, monkeypatch):
    items, asked = folder / "small.card" / "items", []
    before = {path: path.read_bytes() for path in items.rglob("*.jsonl")}
    (items / "model" / "mood.jsonl").unlink()

    def score_task(task, *args, **options):
        asked.append(task.name)
        return jm.evaluation.score_task(task, *args, **options)

    monkeypatch.setattr(card_rows, "score_task", score_task)
    again = found(*line)["rows"]
    assert (
        asked == ["mood"] and again["model"]["time"].keys() == made["rows"]["model"]["time"].keys()
    )
    assert _untimed(again) == _untimed(made["rows"])
    assert {path: path.read_bytes() for path in items.rglob("*.jsonl")} == before


def _untimed(rows):
    """The rows without what is measured anew."""
    return {name: {k: v for k, v in row.items() if k != "time"} for name, row in rows.items()}


def test_two_cards_are_compared_in_pairs(made, folder):
    items = folder / "small.card" / "items"
    other = folder / "dense.card" / "items" / "model"
    shutil.copytree(items / "dense", other)  # the dense model, as if it had a card of its own
    compared = found("card", folder / "dense.card", "--compare", folder / "small.card")
    assert set(compared) == {"mood", "mood.typo", "pairs", "tokens.a", "tokens.b"}
    row = made["rows"]["model"]
    assert compared["mood"]["changed"] == row["tasks"]["mood"]["changed"]
    text = row["loss"]["by_text"]["b"]
    assert compared["tokens.b"]["kl"]["mean"] == pytest.approx(text["kl"]["mean"], abs=1e-6)
    same = compare_cards(folder / "small.card", folder / "small.card")
    one = same["tokens.a"]
    assert one["nll"].mean == one["kl"].mean == same["mood"]["changed"] == 0
    with pytest.raises(FileNotFoundError, match="no items of a card"):
        compare_cards(folder / "model", folder / "small.card")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "a card wants the dense model"),
        (("--reference", "model"), "there is nothing to measure"),
        (("--reference", "model", "--compare", "x"), "no --reference"),
        (("--track", "x", "--compare", "x"), "no --reference and no --track"),
    ],
)
def test_a_wrong_line_is_said(options, message, folder):
    options = [folder / "model" if word == "model" else word for word in options]
    code, _, err = run("card", folder / "small", *options)
    assert code == 2 and message in err


def test_what_a_card_cannot_be_of_is_said(folder):
    model = jm.models.load(folder / "model")
    with pytest.raises(ValueError, match="suite is 'slow'"):
        jm.card(model, model, suite="slow", data=[TASK])
    with pytest.raises(ValueError, match="expected another name for each"):
        jm.card(model, model, data=[TASK, TASK])
    with pytest.raises(ValueError, match="expected another name for each"):
        jm.card(model, model, data=[TASK, dataclasses.replace(TASK, name="mood.typo")])
    with pytest.raises(ValueError, match=r"'tokens\.a', as texts are"):
        jm.card(model, model, data=[dataclasses.replace(TASK, name="tokens.a")])
    with pytest.raises(ValueError, match=r"llama-8b .* expected the same vocabulary|no tokenizer"):
        jm.card(model, jm.models.load("llama-8b"), data=[TASK])
    with pytest.raises(ValueError, match=r"small.* is encoded, expected a dense model"):
        jm.card(model, jm.models.load(folder / "small"), data=[TASK])
    with pytest.raises(ValueError, match="give words and a text"):
        jm.card(model, model, data=[TASK], words=["bad"])
    with pytest.raises(ValueError, match="a text is named 'a/b', expected letters"):
        jm.card(model, model, text={"a/b": "a film", "c": "a film"})
    with pytest.raises(TypeError, match="text is 3, expected a text, texts by name"):
        jm.card(model, model, text=3)
    with pytest.raises(ValueError, match="privacy wants seen and unseen texts"):
        jm.card(model, model, data=[TASK], seen="a film")
    with pytest.raises(TypeError, match="data is 3, expected a folder"):
        jm.card(model, model, data=3)


def test_a_task_that_is_too_long_is_counted_and_the_others_are_asked(folder, tmp_path):
    model = jm.models.load(folder / "model")
    long = dataclasses.replace(
        TASK, name="sst2", items=tuple(x | {"text": x["text"] * 9} for x in ITEMS)
    )
    swaps = dataclasses.replace(TASK, name="swaps")  # as is a way to explain words
    row = jm.card(model, model, data=[long, swaps], explain=["swaps"], out=tmp_path).rows["model"]
    assert row["tasks"]["sst2"] == {"metric": "acc", "items": 0, "skipped": 10}
    assert row["tasks"]["swaps"]["items"] == 10 and row["calibration"].keys() == {"swaps"}
    assert row["robustness"]["sst2.typo"]["skipped"] == 10 and "swaps" not in row["robustness"]
    assert compare_cards(tmp_path, tmp_path).keys() == {"swaps"}
    text = (folder / "a.txt").read_text()
    card = jm.card(model, model, data=[long], text=text, out=tmp_path / "text")
    card.save(tmp_path / "text")  # its picture is of the text alone
    assert (tmp_path / "text" / "card.png").read_bytes().startswith(b"\x89PNG")


def test_a_token_reads_its_own_experts_and_one_row_of_the_embedding():
    mixture = {"experts": 4, "per_token": 2, "ffn": 8}
    sizes = {"vocab": 8, "width": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}
    config = llama.Config(**sizes, ffn=16, mixture=mixture)
    init = lambda: llama.module(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    space = space_of(jm.models.Model(config, jax.eval_shape(init)["params"], None, "shapes"))
    others = 2 * 3 * 16 * 8 + 7 * 16  # two experts, seven rows
    assert space["resident"] - space["read_per_token"] == others * 4


@pytest.mark.parametrize("kind", ["typo", "keyboard", "case"])
def test_noise_changes_its_share_of_letters_and_nothing_else(kind):
    text = "the quick brown fox jumps over the lazy dog " * 50
    changed = noisy(text, kind, rate=0.1)
    assert changed == noisy(text, kind, rate=0.1) and noisy(text, kind, rate=0.0) == text
    assert [c.isspace() for c in changed] == [c.isspace() for c in text]
    share = np.mean([a != b for a, b in zip(text, changed)])
    assert 0.05 < share < 0.2
    task = noisy_task(TASK, kind, rate=1.0)
    assert task.name == f"mood.{kind}" and task.items[0]["text"] != ITEMS[0]["text"]
    assert task.choices == TASK.choices


def test_the_word_that_counts_is_worth_most():
    worth = occlusion("a b c d", lambda texts: np.array([float("c" in t) for t in texts]))
    assert worth.tolist() == [0, 0, 1, 0]
    items = [{"item": 0, "worth": [0.0, 1.0, 3.0, 2.0]}]
    other = [{"item": 0, "worth": [0.0, 1.0, 2.0, 3.0]}]
    found = attribution_agreement(items, other)
    assert found.rank_correlation.mean == pytest.approx(0.8) and found.same_top_word == 0
    with pytest.raises(ValueError, match="of 1 texts none"):
        attribution_agreement([{"item": 0, "worth": [1.0]}], [{"item": 0, "worth": [1.0]}])
