"""--mesh divides the weights of a model, or is refused before any work."""

import pytest
from command_lines import DENSE, found, model_folder, run


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("cli"))


@pytest.mark.slow
def test_a_mesh_spreads_what_fit_and_generate_hold(here, tmp_path):
    axes = "fsdp=2,tensor=2"
    line = ("fit", here / "model", "--bytes", DENSE // 2, "--text", here / "a.txt")
    whole = found(*line, "--out", tmp_path / "whole")
    apart = found(*line, "--out", tmp_path / "apart", "--mesh", axes)
    assert apart["bytes_per_device"] < whole["bytes"] / 2 and apart["plan"] == whole["plan"]
    got, want = (x["evaluation"]["perplexity"]["mean"] for x in (apart, whole))
    assert got == pytest.approx(want, rel=1e-3)
    write = ("generate", tmp_path / "whole", "--prompt", "It was", "--max-new-tokens", 4)
    alone, together = found(*write), found(*write, "--mesh", axes)
    assert together["ids"] == alone["ids"]
    assert together["bytes_per_device"] == apart["bytes_per_device"]
    assert found("generate", tmp_path / "apart", *write[2:])["ids"] == alone["ids"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [("fsdp=16", "takes 16 devices, there are 8"), ("rows=2", "--mesh 'rows=2': expected"),
     ("fsdp=x", "--mesh 'fsdp=x'"), ("fsdp=0", "expected at least 1")],
)  # fmt: skip
def test_a_mesh_that_cannot_be_is_told_before_any_work(here, tmp_path, axes, message):
    line = ("fit", here / "model", "--bytes", DENSE, "--out", tmp_path / "x", "--mesh", axes)
    code, _, err = run(*line)
    assert code and message in err and not (tmp_path / "x").exists()
