"""Two processes train together, are killed, and go on in one process to the same losses."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import process_of_a_run
import pytest

import jaxmem as jm

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


def processes(out, last=0):
    """The exit codes of two processes of a run in `out`, and what they wrote."""
    with socket.socket() as connection:
        connection.bind(("localhost", 0))
        address = f"localhost:{connection.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count=1"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers, logs = [], [pathlib.Path(f"{out}.log.{i}") for i in range(2)]
    for i, log in enumerate(logs):
        command = [sys.executable, process_of_a_run.__file__, out, address, "2", i, last]
        with log.open("w") as file:
            streams = {"stdout": file, "stderr": file}
            workers.append(subprocess.Popen([*map(str, command)], env=env, **streams))
    workers[0].wait(300)
    if last:
        workers[1].kill()
    return [worker.wait(300) for worker in workers], [log.read_text()[-2000:] for log in logs]


@pytest.mark.slow
def test_two_processes_train_together_and_one_goes_on_after_a_kill(tmp_path):
    codes, logs = processes(tmp_path / "both")
    assert codes == [0, 0], logs
    losses = [json.loads((tmp_path / f"both.{i}.json").read_text()) for i in range(2)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert jm.models.load(tmp_path / "both/model").config == process_of_a_run.CONFIG
    codes, _ = processes(tmp_path / "killed", last=3)
    assert codes[0] == -signal.SIGKILL
    with jax.numpy_dtype_promotion("standard"):
        alone = process_of_a_run.run(tmp_path / "killed")
    assert alone == pytest.approx(losses[0], rel=1e-3)
