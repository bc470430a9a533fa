"""Each notebook of colab/, run with the real model and tokenizer that it names.

    pip install -e ".[demo,tpu]"
    python experiments/quality/run_notebooks.py

The figures go into run_notebooks.json: the seconds of each notebook, and what its cells printed
first and last. A notebook that is in the file is left alone; delete its row to run it again. The
lines that install are left out, and each notebook runs in an empty folder, in a process of its own.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "colab"
OUT = pathlib.Path(__file__).with_suffix(".json")
LAST = 400  # characters of what a notebook printed, at each end, that are kept


def run(path: pathlib.Path) -> dict:
    """Runs the cells of one notebook in this process."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    printed, names, start = io.StringIO(), {}, time.perf_counter()
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        code = "\n".join(line for line in lines if not line.startswith("%"))
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), names)
    seconds = round(time.perf_counter() - start, 1)
    model, text = names.get("model") or names["dense"], printed.getvalue()
    return {"seconds": seconds, "model": model.source, "first": text[:LAST], "last": text[-LAST:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", type=pathlib.Path, help="run one notebook here and print its row")
    one = parser.parse_args().one
    if one is not None:
        print(json.dumps(run(one)))
        return
    table = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    table |= {
        "command": "python experiments/quality/run_notebooks.py",
        "jax": importlib.metadata.version("jax"),
        "backend": "cpu",
        "seed": 0,
    }
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem in table["rows"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", str(path)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{path.name} failed:\n{done.stderr}")
        table["rows"][path.stem] = json.loads(done.stdout.splitlines()[-1])
        OUT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
