"""Several processes train and are killed while they save; others resume from the file."""

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
MESH = dict(fsdp=4, tensor=2)


@pytest.fixture
def interrupted(tmp_path):
    """(the number of processes, the file of a run killed in its second save, its record)."""
    count, path = 2, tmp_path / "run.jm"  # experiments/scaling/processes.py takes more
    with socket.socket() as connection:
        connection.bind(("localhost", 0))
        address = f"localhost:{connection.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count={8 // count}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers = []
    for i in range(count):
        arguments = map(json.dumps, (count, i, MESH, HALF, STEPS))
        command = [sys.executable, training.__file__, str(path), address, *arguments]
        with open(tmp_path / f"log.{i}", "w") as log:
            workers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    exit_code = workers[-1].wait(300)
    for worker in workers:  # the others wait for the killed one, so they are killed too
        worker.kill()
        worker.wait()
    assert exit_code == -signal.SIGKILL, (tmp_path / f"log.{count - 1}").read_text()[-2000:]
    return count, path, json.loads(pathlib.Path(f"{path}.json").read_text())


def test_a_run_killed_in_a_save_goes_on_with_another_number_of_processes(interrupted):
    count, path, recorded = interrupted
    assert len(list(path.parent.glob(".run.jm.*.tmp"))) <= 1  # none if the others saw it die
    mesh = jm.mesh(fsdp=2, tensor=2)
    state = jm.load(path, shardings=lambda tree: training.places(tree, mesh))
    state = jm.shard(state, training.places(state, mesh))
    assert_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    assert_close(training.perplexity(state), recorded["perplexity"])
    state, later_losses = training.train(state, HALF, STEPS)
    uninterrupted, losses = training.train(training.start(), 0, STEPS)
    assert_close(recorded["losses"] + later_losses, losses)
    assert_close(training.perplexity(state), training.perplexity(uninterrupted))
    assert recorded["share"] * 8 == recorded["of"]
    jm.save(path, state)
    assert not list(path.parent.glob(".run.jm.*.tmp"))
    local = 8 // count
    assert f"fsdp={local} has no device of process 1" in recorded["small_mesh"]
    assert f"takes 64 devices, there are 8 of {count} processes" in recorded["large_mesh"]
    assert recorded["other_trees"].startswith("process 1 saves another tree than process 0")
