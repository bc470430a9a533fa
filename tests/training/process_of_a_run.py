"""One of the processes of a training run: tests/training/test_run_in_processes.py runs it."""

import pathlib
import sys

from command_lines import run

STEPS = ("--steps", 4, "--save-every", 2, "--learning-rate", 0.02, "--batch", 4, "--seq", 16)


def line(folder, *more):
    """A line that trains new weights of the model in `folder` on two devices."""
    texts = ("--data", folder / "a.txt", "--held-out", folder / "b.txt", "--out", folder / "run")
    recipe = ("--recipe", folder / "recipe.json", "--mesh", "fsdp=2", "--task", "pretrain")
    return ("train", folder / "model", *texts, *recipe, *STEPS, *more, "--json")


if __name__ == "__main__":
    folder, address, index, *more = sys.argv[1:]
    joined = ("--processes", 2, "--process-id", index, "--coordinator", address)
    code, out, err = run(*line(pathlib.Path(folder), *joined, *more))
    pathlib.Path(folder, f"said.{index}").write_text(out)
    print(err, flush=True)  # as it waits for the others before it ends
    sys.exit(code)
