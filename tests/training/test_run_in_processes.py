"""Two processes run one command together, and one goes on from their checkpoint."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
from command_lines import model_folder, run

import jaxmem as jm

STEPS = ("--steps", 4, "--save-every", 2, "--learning-rate", 0.02, "--batch", 4, "--seq", 16)
ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


def line(folder, *more):
    """A line that trains new weights of the model in `folder` on two devices."""
    texts = ("--data", folder / "a.txt", "--held-out", folder / "b.txt", "--out", folder / "run")
    recipe = ("--recipe", folder / "recipe.json", "--mesh", "fsdp=2", "--task", "pretrain")
    return ("train", folder / "model", *texts, *recipe, *STEPS, *more, "--json")


def is_open(port):
    with socket.socket() as connection:
        return connection.connect_ex(("localhost", port)) == 0


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
    env["PYTHONPATH"] = str(ROOT)
    workers, logs = [], [tmp_path / f"log.{i}" for i in range(2)]
    for i, log in enumerate(logs):
        joined = ("--processes", 2, "--process-id", i, "--coordinator", address)
        command = [sys.executable, "-m", "jaxmem", *line(tmp_path, *more, *joined)]
        with log.open("w") as file, (tmp_path / f"said.{i}").open("w") as said:
            streams = {"stdout": said, "stderr": file}
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
    code, _, err = run(*line(folder))
    assert code == 0, err
    assert rows()[:2] == together[:2]
    for name in ("loss", "held_out_loss"):
        assert rows()[3][name] == pytest.approx(together[3][name], rel=1e-3)


@pytest.fixture
def training(tmp_path):
    """(two processes that have trained a step of many, their logs)."""
    workers, logs = start(tmp_path, "--steps", 10_000)
    numbers, until = tmp_path / "run/scalars.jsonl", time.monotonic() + 500
    try:
        while not numbers.exists() or not numbers.stat().st_size:
            assert time.monotonic() < until and workers[0].poll() is None, logs[0].read_text()
            time.sleep(0.1)
        yield workers, logs
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@pytest.mark.slow
def test_a_process_says_in_one_line_that_another_one_is_gone_and_ends(training):
    workers, logs = training
    workers[1].kill()
    assert workers[0].wait(60) == 1
    assert "process 0 of 2 cannot go on" in logs[0].read_text()
    assert "Traceback" not in logs[0].read_text()


@pytest.mark.slow
def test_a_termination_ends_two_processes(training):
    workers, logs = training
    for worker in workers:
        worker.terminate()
    assert [worker.wait(60) for worker in workers] == [130, 130]
    for log in logs:
        assert "interrupted; nothing was left half-written" in log.read_text().splitlines()[-1]


@pytest.mark.slow
def test_a_process_that_waits_for_others_can_be_terminated(tmp_path):
    (first, second), logs = start(tmp_path)
    second.kill()
    second.wait()
    port, until = int(first.args[-2].split(":")[1]), time.monotonic() + 100
    try:
        while not is_open(port):
            assert time.monotonic() < until and first.poll() is None, logs[0].read_text()
            time.sleep(0.1)
        first.terminate()
        assert first.wait(60) == 130, logs[0].read_text()
    finally:
        first.kill()
        first.wait()
