"""A fit that is interrupted, at any moment, ends with 130 and one line and leaves nothing."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
from checkpoints import HF, random_tensors, write_single

from jaxmem import cli

TIMES = int(os.environ.get("JAXMEM_INTERRUPTS", "25"))
# One process, so that programs are compiled once: each fit is interrupted at a random moment of
# the first 70 % of the time that the last whole one took, since later ones take less.
SCRIPT = """
import contextlib, io, json, os, pathlib, random, shutil, signal, time

from jaxmem import cli

signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
moments, before = random.Random(0), sorted(os.listdir())
line = ["fit", "model", "--bytes", "60kB", "--out", "new"]
seconds = 0.0
for i in range(TIMES + 2):
    number = moments.choice([signal.SIGINT, signal.SIGTERM])
    if i > 1:  # the first two compile, and show how long a fit takes
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.7 * seconds))
    start, told = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(line)
        except KeyboardInterrupt:
            code = "before or after the command"
    signal.setitimer(signal.ITIMER_REAL, 0)
    if i <= 1:
        seconds = time.perf_counter() - start
    whole = "new" not in os.listdir() or json.loads(pathlib.Path("new/jaxmem.json").read_text())
    shutil.rmtree("new", ignore_errors=True)
    last = told.getvalue().strip().splitlines()[-1:]
    left = sorted(set(os.listdir()) - set(before))
    print(json.dumps([code, last if code == 130 else None, left, bool(whole)]), flush=True)
"""


@pytest.mark.slow
def test_interrupts_at_random_moments_end_alike(tmp_path):
    (tmp_path / "model").mkdir()
    write_single(tmp_path / "model", random_tensors())
    (tmp_path / "model" / "config.json").write_text(json.dumps(HF))
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-X", "faulthandler", "-c", SCRIPT.replace("TIMES", str(TIMES))]
    ran = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    ends = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ends[:2] == [[0, None, [], True]] * 2 and len(ends) == TIMES + 2
    codes = collections.Counter(code for code, *_ in ends[2:])
    assert codes[130] > TIMES // 4 and set(codes) <= {0, 130, "before or after the command"}
    for code, last, left, whole in ends[2:]:
        assert not left and whole
        assert code != 130 or last == ["jaxmem: interrupted; nothing was left half-written"]
