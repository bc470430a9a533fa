"""Several processes train, are killed while they save, and others go on where the file says."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


@pytest.mark.slow
def test_a_run_killed_in_a_save_goes_on_with_another_number_of_processes(tmp_path):
    out, script = tmp_path / "found.json", ROOT / "experiments/processes.py"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK}
    command = [sys.executable, str(script), "small", "--out", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(out.read_text())["rows"]
    assert row["processes"] == [2, 1] and len(row["losses"]) == 4
    assert (
        row["old_file_whole_after_kill"] and row["unfinished_files_after_kill"] <= 1
    )  # none when the kill came late
    assert row["next_save_removed_them"]
    assert row["largest_relative_difference_of_losses"] < 1e-5
    assert row["relative_difference_of_perplexity"] < 1e-5
    assert row["on_one_device"] * 8 == row["bytes_of_a_weight"]
