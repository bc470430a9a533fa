"""Fits that are interrupted at random moments: each ends with 130, and nothing is left of it.

    python experiments/reliability/interrupts.py --interrupts 20

One process fits a model again and again, so that programs are compiled once. Ctrl-C or a
termination comes at a random moment of the first 70 % of the time that the last whole fit took. A
fit that is whole before that does not count.
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from small_files import random_model

import jaxmem as jm
from jaxmem import cli
from jaxmem.architectures import llama

SIZES = dict(vocab=320, width=64, ffn=96, layers=2, heads=4, kv_heads=2, head_dim=16, context=32)
LINE = ["fit", "model", "--bytes", "60kB", "--out", "new"]
OUTSIDE = "before or after the command"
LAST_LINE = "jaxmem: interrupted; nothing was left half-written"
WHOLE_FITS = 2  # the first one compiles, the second one shows how long a fit takes


def fit_again_and_again(
    folder: pathlib.Path, interrupts: int, seed: int, ends: multiprocessing.connection.Connection
) -> None:
    """Sends (whether it was interrupted, exit code, class of the end) of each fit."""
    os.chdir(folder)
    jax.config.update("jax_disable_most_optimizations", True)
    draw, before, signals, seconds = random.Random(seed), sorted(os.listdir()), [], None

    def interrupt(*_: Any) -> None:
        signals.append(draw.choice([signal.SIGINT, signal.SIGTERM]))
        signal.raise_signal(signals[-1])

    signal.signal(signal.SIGALRM, interrupt)
    for number in (signal.SIGINT, signal.SIGTERM):  # outside the command, and in the background
        signal.signal(number, signal.default_int_handler)
    for fit in itertools.count():
        start, told, count = time.perf_counter(), io.StringIO(), len(signals)
        try:
            if fit >= WHOLE_FITS:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, 0.7 * seconds))
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(LINE)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            code = OUTSIDE
        interrupted = len(signals) > count
        seconds = seconds if interrupted else time.perf_counter() - start
        expected = (130, OUTSIDE) if interrupted else (0,)
        state = state_after_a_fit(code, told.getvalue(), before)
        ends.send((interrupted, code, state if code in expected else "wrong"))
        if len(signals) == interrupts:
            return


def state_after_a_fit(code: int | str, told: str, before: list[str]) -> str:
    """The class of what a fit left, which is then removed."""
    whole = not os.path.exists("new") or json.loads(pathlib.Path("new/jaxmem.json").read_text())
    shutil.rmtree("new", ignore_errors=True)
    is_told = code != 130 or told.strip().splitlines()[-1:] == [LAST_LINE]
    is_right = whole and is_told and sorted(os.listdir()) == before
    return "right" if is_right else "wrong"


def run(interrupts: int, seed: int = 0, *, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Counts of outcomes of `interrupts` interrupted fits, and how many of them ended with 130."""
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        jm.interop.to_compressed_tensors(folder / "model", random_model(llama.Config(**SIZES)))
        fits = processes.Process(
            target=fit_again_and_again, args=(folder, interrupts, seed, sender)
        )
        fits.start()
        sender.close()
        with contextlib.suppress(EOFError):
            while True:
                results.append(receiver.recv())
        fits.join()
    if fits.exitcode:
        results.append((True, f"exit {fits.exitcode}", "raw"))  # a crash: no more fits followed
    if results[:WHOLE_FITS] != [(False, 0, "right")] * WHOLE_FITS:
        raise RuntimeError(f"fits without an interrupt ended with {results}")
    ends = [
        (code, result) for interrupted, code, result in results if interrupted or result != "right"
    ]
    bad = [
        [i, result, f"code {code}"] for i, (code, result) in enumerate(ends) if result != "right"
    ]
    for i, result, text in bad:
        tell(f"{result:8} interrupt {i}: {text}")
    counts = collections.Counter(result for _, result in ends)
    codes = collections.Counter(str(code) for code, _ in ends)
    return {"counts": counts, "codes": codes, "bad": bad}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interrupts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.interrupts, options.seed)))
