"""Several processes train, are killed while they save, and others go on where the file says."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import training

import jaxmem as jm

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
HALF, STEPS = 2, 4
MESHES = {2: dict(fsdp=4, tensor=2), 4: dict(fsdp=2, tensor=4)}


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def interrupted(request, tmp_path):
    """(the file of a run that was killed as it saved again, what it found, how it ended)."""
    count, path = request.param, tmp_path / "run.jm"
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count={8 // count}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers = []
    for i in range(count):
        given = map(json.dumps, (count, i, MESHES[count], HALF, STEPS))
        command = [sys.executable, training.__file__, str(path), address, *given]
        with open(tmp_path / f"log.{i}", "w") as log:
            workers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    code = workers[-1].wait(300)
    for worker in workers:  # the others wait for it: end them likewise
        worker.kill()
        worker.wait()
    assert code == -signal.SIGKILL, (tmp_path / f"log.{count - 1}").read_text()[-2000:]
    return count, path, json.loads(pathlib.Path(f"{path}.json").read_text())


def test_a_run_killed_in_a_save_goes_on_with_another_number_of_processes(interrupted):
    count, path, found = interrupted
    assert len(list(path.parent.glob(".run.jm.*.tmp"))) <= 1  # none where the others saw it die
    mesh = jm.mesh(fsdp=2, tensor=2)
    here = jm.load(path, shardings=lambda tree: training.places(tree, mesh))
    here = jm.shard(here, training.places(here, mesh))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    same(training.perplexity(here), found["perplexity"])
    here, after = training.train(here, HALF, STEPS)
    through, losses = training.train(training.start(), 0, STEPS)
    same(found["losses"] + after, losses)
    same(training.perplexity(here), training.perplexity(through))
    assert found["share"] * 8 == found["of"]
    jm.save(path, here)
    assert not list(path.parent.glob(".run.jm.*.tmp"))
    local = 8 // count
    assert f"fsdp={local} has no device of process 1" in found["small_mesh"]
    assert f"takes 64 devices, there are 8 of {count} processes" in found["large_mesh"]
    assert found["other_trees"].startswith("process 1 saves another tree than process 0")


@pytest.mark.slow
def test_the_experiment_of_whole_models_runs(tmp_path):
    out, script = tmp_path / "found.json", ROOT / "experiments/scaling/processes.py"
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
