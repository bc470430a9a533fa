"""The demo, on the model that it fetches; a file of its own, since it takes longest."""

import json

import pytest

from jaxmem import cli

pytestmark = pytest.mark.optimized


@pytest.mark.slow
def test_the_demo_measures_a_real_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--windows", "1", "--json"]) == 0
    dense, *fitted = json.loads(capsys.readouterr().out)["rows"]
    assert [round(row["bits_per_weight"], 1) for row in fitted] == [8, 6, 5]
    assert dense["kl"]["mean"] == 0 < fitted[0]["kl"]["mean"] < fitted[1]["kl"]["mean"]
    assert fitted[1]["kl"]["mean"] < fitted[2]["kl"]["mean"]
    assert (tmp_path / "jaxmem_demo.png").read_bytes().startswith(b"\x89PNG")
