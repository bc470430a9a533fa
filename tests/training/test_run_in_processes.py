"""Two processes run one command together, and one goes on from their checkpoint."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import process_of_a_run
import pytest
from command_lines import model_folder, run

import jaxmem as jm

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


def start(tmp_path, *more):
    """(two processes that train a model in a folder, their logs)."""
    model_folder(tmp_path)
    recipe = jm.Recipe("tiny", "cpu", "train", 4, 16, mesh={"fsdp": 2}, chunk=16, packed=True)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    with socket.socket() as connection:
        connection.bind(("localhost", 0))
        address = f"localhost:{connection.getsockname()[1]}"
    flags = f"{QUICK} --xla_force_host_platform_device_count=1"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    workers, logs = [], [tmp_path / f"log.{i}" for i in range(2)]
    for i, log in enumerate(logs):
        command = [sys.executable, process_of_a_run.__file__, tmp_path, address, i, *more]
        with log.open("w") as file:
            streams = {"stdout": file, "stderr": file}
            workers.append(subprocess.Popen([*map(str, command)], env=env, **streams))
    return workers, logs


@pytest.fixture
def folder(tmp_path):
    """A folder in which two processes trained a model."""
    workers, logs = start(tmp_path)
    try:
        codes = [worker.wait(600) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]
    return tmp_path


@pytest.mark.slow
def test_two_processes_train_together_and_one_goes_on_from_their_checkpoint(folder):
    made = json.loads((folder / "said.0").read_text())
    assert (
        not (folder / "said.1").read_text() and "step      4" not in (folder / "log.1").read_text()
    )
    rows = lambda: [json.loads(x) for x in (folder / "run/scalars.jsonl").read_text().splitlines()]
    together = rows()
    assert together[3]["loss"] == made["loss"] < together[0]["loss"]
    assert "embed" in jm.models.load(folder / "run/model").params
    shutil.rmtree(folder / "run/checkpoints/4")
    code, _, err = run(*process_of_a_run.line(folder))
    assert code == 0, err
    assert rows()[:2] == together[:2]
    for name in ("loss", "held_out_loss"):
        assert rows()[3][name] == pytest.approx(together[3][name], rel=1e-3)


@pytest.mark.slow
def test_a_process_says_in_one_line_that_another_one_is_gone(tmp_path):
    workers, logs = start(tmp_path, "--steps", 10_000)
    numbers, until = tmp_path / "run/scalars.jsonl", time.monotonic() + 500
    try:
        while not numbers.exists() or not numbers.stat().st_size:
            assert time.monotonic() < until and workers[0].poll() is None, logs[0].read_text()
            time.sleep(0.1)
        workers[1].kill()
        while "jaxmem: " not in logs[0].read_text():
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert "process 0 of 2 cannot go on" in logs[0].read_text()
    assert "Traceback" not in logs[0].read_text()
