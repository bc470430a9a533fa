"""Two processes train together, and one goes on from their checkpoint to the same losses."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import process_of_a_run
import pytest

import jaxmem as jm

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


@pytest.fixture
def losses(tmp_path):
    """What each of two processes says of their run in `tmp_path`/run."""
    with socket.socket() as connection:
        connection.bind(("localhost", 0))
        address = f"localhost:{connection.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count=1"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers, logs = [], [tmp_path / f"log.{i}" for i in range(2)]
    for i, log in enumerate(logs):
        command = [sys.executable, process_of_a_run.__file__, tmp_path / "run", address, 2, i]
        with log.open("w") as file:
            streams = {"stdout": file, "stderr": file}
            workers.append(subprocess.Popen([*map(str, command)], env=env, **streams))
    try:
        codes = [worker.wait(600) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]
    return [json.loads((tmp_path / f"run.{i}.json").read_text()) for i in range(2)]


@pytest.mark.slow
def test_two_processes_train_together_and_one_goes_on_from_their_checkpoint(tmp_path, losses):
    assert losses[0] == losses[1] and losses[0][3] < losses[0][0]
    assert jm.models.load(tmp_path / "run/model").config == process_of_a_run.CONFIG
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    with jax.numpy_dtype_promotion("standard"):
        alone = process_of_a_run.run(tmp_path / "run")
    assert alone == pytest.approx(losses[0], rel=1e-3) and alone[:2] == losses[0][:2]
