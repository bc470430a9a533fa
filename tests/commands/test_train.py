"""jaxmem train: from texts to a model that loads, and on from a checkpoint."""

import json
import math

import pytest
from command_lines import model_folder, run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import jaxmem as jm
from jaxmem.architectures import encoder

AT = ("--coordinator", "localhost:1234")
OPTIONS = ("--batch", 2, "--seq", 16, "--learning-rate", 0.01, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("train"))


def line(folder, *more, steps=6):
    texts = ("--data", folder / "a.txt", "--out", folder / "run", "--memory", "2GB")
    return ("train", folder / "model", *texts, "--steps", steps, *OPTIONS, *more)


def test_a_text_is_learnt_and_the_same_line_goes_on(folder):
    code, out, err = run(*line(folder, "--held-out", folder / "a.txt"))
    assert code == 0, err
    figures = json.loads(out)
    rows = [json.loads(row) for row in (folder / "run/scalars.jsonl").read_text().splitlines()]
    assert len(rows) == figures["steps"] == 6 and rows[5]["loss"] < rows[0]["loss"] - 0.5
    assert figures["perplexity"] == math.exp(rows[5]["held_out_loss"]) and figures["skipped"] == 0
    assert jm.models.load(figures["out"]).params["embed"]["embedding"].dtype == "bfloat16"
    again = json.loads(run(*line(folder, "--held-out", folder / "a.txt"))[1])
    assert again["loss"] == figures["loss"] and again["recipe"] == figures["recipe"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seq", 200), "96"),
        (("--recipe", "no.json"), "no text file no.json"),
        (("--learning-rate", -1), "learning_rate is -1.0"),
        (("--data", "none.txt"), "none.txt"),
        (("--rank", 4), "--rank is of adapters, but the task is full: --task lora"),
        (("--evaluate-every", 2), "--evaluate-every wants --held-out FILE"),
        (("--process-id", 0), "--process-id is given without --processes"),
        (("--processes", 2), "--processes 2 wants --coordinator and --process-id, too"),
        (("--processes", 2, *AT, "--process-id", 2), "--process-id is 2, expected 0 to 1"),
        (("--processes", 2, *AT, "--process-id", -1), "--process-id is -1, expected 0 to 1"),
        (("--processes", 0, *AT, "--process-id", 0), "--processes is 0, expected at least 1"),
        (("--processes", 2, "--coordinator", "here", "--process-id", 0), "expected HOST:PORT"),
        (("--processes", "auto", *AT), "--processes auto finds it: leave it out"),
    ],
)
def test_what_cannot_be_trained_is_one_line(folder, more, message):
    code, out, err = run(*line(folder, *more))
    assert code == 2 and not out and err.count("\n") <= 3 and message in err.splitlines()[-1]


def test_an_encoder_learns_hidden_words_and_a_text_is_held_out(folder):
    words = ["[UNK]", "[MASK]", *(chr(97 + i) for i in range(14))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(words[:2])
    sizes = dict(vocab=16, width=16, ffn=16, layers=1, heads=2, context=16, head="masked_lm")
    config = encoder.Config(**sizes)
    module = encoder.module(config)
    jm.training.fresh(jm.models.Model(config, module, tokenizer, "tiny")).save(folder / "encoder")
    (folder / "words.txt").write_text("a b c d e f g h " * 40)
    text, out = ("--data", folder / "words.txt"), folder / "masked"
    more = ("--held-out", folder / "words.txt", "--steps", 8, "--memory", "2GB")
    code, said, err = run("train", folder / "encoder", *text, "--out", out, *more, *OPTIONS)
    assert code == 0, err
    assert 1 < json.loads(said)["perplexity"] < 20
    (folder / "few.txt").write_text("a b c")
    code, _, err = run(
        "train", folder / "encoder", *text, "--out", out, "--held-out", folder / "few.txt", *OPTIONS
    )
    assert code == 2 and "the held-out text has 3 tokens, expected at least" in err


@pytest.mark.slow
def test_weights_on_a_mesh_are_trained_to_the_losses_of_one_device(folder):
    found = {}
    for axes in (None, "fsdp=2"):
        out = folder / f"mesh {axes}"
        more = ("--out", out, *(("--mesh", axes) if axes else ()))
        code, said, err = run(*line(folder, *more, steps=3))
        assert code == 0, err
        found[axes] = json.loads(said)
    assert found["fsdp=2"]["recipe"]["mesh"] == {"fsdp": 2}
    for figures in found.values():
        assert figures["loss"] == pytest.approx(found[None]["loss"], rel=5e-3)
    code, out, err = run(*line(folder, "--out", folder / "mesh fsdp=2", "--mesh", "fsdp=4"))
    assert code == 2 and "{'fsdp': 4}, expected the recipe's {'fsdp': 2}" in err


def test_a_model_is_trained_from_new_weights(folder):
    out = folder / "new"
    code, _, err = run(*line(folder, "--task", "pretrain", "--out", out, steps=8))
    assert code == 0, err
    rows = [json.loads(row) for row in (out / "scalars.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(320), abs=0.5)  # it knows nothing at first
    assert rows[7]["loss"] < rows[0]["loss"] - 0.5
    up = lambda where: jm.models.load(where, dtype="float32").params["layers"]["mlp"]["up"][
        "kernel"
    ]
    assert abs(up(folder / "model") - up(out / "model")).max() > 0.1


@pytest.mark.parametrize("adapter", ["rslora", "dora", "lora-fa", "adalora"])
def test_adapters_are_trained_written_for_peft_and_merged(folder, adapter):
    out = folder / adapter
    texts = ("--data", folder / "a.txt", "--out", out, "--memory", "2GB", "--steps", 4)
    more = ("--task", "lora", "--adapter", adapter, "--rank", 4, "--merge")
    code, said, err = run("train", folder / "model", *texts, *OPTIONS, *more)
    assert code == 0, err
    figures = json.loads(said)
    assert figures["recipe"]["rank"] == 4 and figures["recipe"]["adapter"] == adapter
    dense = jm.models.load(folder / "model")
    pairs = jm.interop.from_peft(figures["peft"], dense)
    assert set(pairs) == set(jm.load(out / "adapters.jm"))
    parts = {"u", "v"} | ({"m"} if adapter == "dora" else set())
    assert all(set(pair) == parts for pair in pairs.values())
    merged = figures["merged"]
    assert merged["kl"] < 0.2 and merged["nbytes"] == merged["nbytes_before"]
    assert jm.models.load(figures["merged"]["out"]).config == dense.config
