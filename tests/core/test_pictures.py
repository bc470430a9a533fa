"""What notebooks show of results: a table in HTML, and a picture."""

import pytest

import jaxmem as jm
from jaxmem.compiler.memory_analysis import Memory
from jaxmem.compression.reporting import Report, Row
from jaxmem.evaluation.result import Estimate, Evaluation
from jaxmem.planner.planned import Planned
from jaxmem.planner.recipe import Recipe
from jaxmem.planner.search import Candidate

MEMORY = Memory("tpu v5e:1x1", 600, 200, 300, 100, 0, 9, limit=2000, fits=True, flops=10**12)
RECIPE = Recipe("llama-1b", "tpu v5e:1x1", "serve", 8, 1024)
ROWS = (Candidate(RECIPE, "fits", 900, {"step": MEMORY}), Candidate(RECIPE, "too large", 9000))
SHOWN = {
    "plan": (jm.Plan({"layers/w": jm.Int(4), "layers[0]/w": jm.Int(8)}), "layers[0]/w"),
    "report": (Report((Row("a < b", (4, 4), "Int(bits=8)", 64, 24, 0.01, ()),)), "a &lt; b"),
    "memory": (MEMORY, "1,000"),
    "estimate": (Memory("tpu v5e:1x1", limit=2000, fits=False, estimate=2500), "2,500"),
    "evaluation": (Evaluation(8, 100, kl=Estimate(0.1)), "0.1"),
    "planned": (Planned(ROWS, MEMORY, 2000, 1.0), "taken"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_is_a_table_and_a_picture_in_a_notebook(name, tmp_path):
    result, text = SHOWN[name]
    assert f">{text}<" in result._repr_html_()
    picture = result.plot()
    assert picture._repr_png_().startswith(b"\x89PNG")
    picture.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert all(axes.get_title() for axes in picture.figure.axes)
