"""The notebooks are valid, hold no outputs, and run: here on a tiny model, with no network."""

import json
import pathlib
import re

import jax
import pytest
import tokenizers
from checkpoints import HF, random_tensors, write_single
from tokenizers import decoders, pre_tokenizers

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colab").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    """The notebook's Python, without the lines that only a notebook understands."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    lines = "\n".join(sources).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


@each_notebook
def test_a_notebook_compiles_and_holds_no_output(path):
    compile(code(path), path.name, "exec")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") for cell in cells)


@pytest.fixture
def tiny(tmp_path):
    """A folder with a random Llama and a tokenizer that knows every byte."""
    write_single(tmp_path, random_tensors())
    (tmp_path / "config.json").write_text(json.dumps(HF | {"max_position_embeddings": 256}))
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    names = {}
    with jax.numpy_dtype_promotion("standard"):  # a user's setting, and optax wants it
        exec(compile(code(path).replace('"smollm2-135m"', '"."'), path.name, "exec"), names)
    shown = capsys.readouterr().out
    SHOWN[path.stem](names, shown)


def it_fits(names, shown):
    assert "dense_perplexity" in shown and pathlib.Path("smaller").is_dir()
    assert shown.count("tpu v5e:1x1: fits") == 2 and names["written"].text in shown


def it_is_sparse_and_smaller(names, shown):
    assert "dense_perplexity" in shown and pathlib.Path("smaller").is_dir()
    jm, pruned, student = names["jm"], names["pruned"], names["student"]
    zeros = lambda tree: float((tree["layers"]["mlp"]["up"]["kernel"] == 0).mean())
    assert zeros(jm.decode(pruned)) == zeros(jm.decode(names["both"])) == zeros(student) == 0.5
    sizes = [jm.nbytes(names[name]) for name in ("params", "retrained", "both")]
    assert sizes == sorted(sizes, reverse=True)
    assert names["smaller"].config.layers == names["model"].config.layers - 1


def it_is_the_same_on_many(names, shown):
    assert names["error"] < 1e-4 and names["after"] < 1e-4  # a CPU's integer digits
    assert names["losses"] == sorted(names["losses"], reverse=True)
    kernels = [row for row in names["report"].rows if row.path.endswith("mlp/up/kernel")]
    assert kernels and all(row.per_device * 8 == row.encoded for row in kernels)
    assert f"{names['places'].total.per_device:,}" in shown


def it_says_what_changed(names, shown):
    rows = names["card"].rows
    assert rows["dense"]["tasks"]["reviews"]["changed"] == 0 < rows["model"]["loss"]["kl"].mean
    assert "robustness swaps margin_lost" in shown and "attribution.html" in shown
    assert names["page"].count("<tr>") == 2


def it_is_tuned_and_merged(names, shown):
    merged, trained = names["merged"], names["trained"]
    assert len(trained.history) == 16 and not trained.skipped
    assert merged.nbytes == merged.nbytes_before and 0 <= merged.kl < 0.5
    assert pathlib.Path("adapter/adapter_config.json").is_file()
    assert names["written"].text in shown and "perplexity" in shown


def it_is_trained_in_full(names, shown):
    plain, less = (int(x.replace(",", "")) for x in re.findall(r"full.*: ([\d,]+) bytes", shown))
    assert less < plain and names["learnt"].loss < names["learnt"].history[0]["loss"] - 0.5
    assert names["planned"].chosen.memory.fits and not names["trained"].skipped
    assert "after" in shown and names["written"].text in shown


SHOWN = {
    "card": it_says_what_changed,
    "qlora": it_is_tuned_and_merged,
    "quickstart": it_fits,
    "prune_and_retrain": it_is_sparse_and_smaller,
    "one_device_to_many": it_is_the_same_on_many,
    "train_in_full": it_is_trained_in_full,
}
