"""`fit --for gguf` beside llama.cpp's own quantizer at the size of its files: fit_for_gguf.json.

    pip install -e ".[demo]"
    npm install --prefix FOLDER --ignore-scripts node-llama-cpp@3.22.1
    python experiments/quality/fit_for_gguf.py --clients FOLDER --text wikitext2_valid.txt

The model is smollm2-135m, rotated: the same function, with weights off the grid of the file that it
is read from. The first half of TEXT calibrates: E[x²] of 8 windows of 1,024 tokens for llama.cpp's
importance matrix, and the 3 windows that `fit` reads, where it reads a text. A row "weighted" has
the plan by Fisher information and ranges weighted by the same E[x²]: what `fit` makes of a text,
without GPTQ. The second half of TEXT measures. Each row is a whole file, vocabulary included; its
KL to the dense model is that of the weights in it, which jaxmem reads and runs for both.
gguf_greedy.py opens the file of 110 MB in llama.cpp. A row that is in the JSON is not made again,
so the rows may be made one by one (`--rows`), with their files left in `--files FOLDER`.
"""

import argparse
import ctypes
import dataclasses
import json
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.architectures.gguf import gguf_decoder
from jaxmem.compression.fit_calibrated import error_costs, input_moments, search_ranges
from jaxmem.compression.fit_file_format import target_forms
from jaxmem.compression.fit_integers import plan_integers
from jaxmem.io.program_cache import kept_programs
from jaxmem.models.example_inputs import example_inputs
from jaxmem.models.model import Model

COMMAND = "python experiments/quality/fit_for_gguf.py"
FILE_TYPES = {"Q4_K_M": 15, "Q6_K": 18, "Q5_K_M": 17}  # llama.cpp's numbers of them
IMPORTANCE_WINDOWS, FIT_WINDOWS, SMALL = 8, 3, 110_000_000


class Importance(ctypes.Structure):
    """struct llama_model_imatrix_data of llama.h."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class QuantizeParams(ctypes.Structure):
    """struct llama_model_quantize_params of llama.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("threads", "file_type", "output", "embedding")),
        *((name, ctypes.c_bool) for name in ("again", "head", "copy", "pure", "split", "dry_run")),
        ("importance", ctypes.POINTER(Importance)),
        *((name, ctypes.c_void_p) for name in ("fields", "types", "prune")),
    ]


def importance(model: Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """E[x²] of the inputs of each tensor, by its name in a GGUF file, f32."""
    rows = ids[: IMPORTANCE_WINDOWS * 1024].reshape(-1, 1, 1024)
    stats = jm.stats(model.apply, model.params, [(row,) for row in rows], moments="diag")
    found = {}
    for path, weight_map in gguf_decoder.weights(model.config, "llama").items():
        if path in stats:
            second = np.asarray(stats[path].second, np.float32)
            rows = second if weight_map.stacked else second[None]
            found |= dict(zip(weight_map.names, rows, strict=True))
    return found


def quantize(clients: pathlib.Path, source: str, out: str, name: str, matrix: dict) -> None:
    """Writes `out`, which llama.cpp makes of the f32 file `source`."""
    folder = clients / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
    lib = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    lib.llama_model_quantize_default_params.restype = QuantizeParams
    params = lib.llama_model_quantize_default_params()
    if params.threads != 0 or not params.head or params.again:
        raise ValueError(f"{folder} has another llama.h than this script")
    entries = [Importance(k.encode(), v.ctypes.data, v.size) for k, v in matrix.items()]
    params.importance = (Importance * (len(entries) + 1))(*entries)  # the last one has no name
    params.file_type, params.threads = FILE_TYPES[name], 2
    arguments = [ctypes.c_char_p(source.encode()), ctypes.c_char_p(out.encode())]
    if lib.llama_model_quantize(*arguments, ctypes.byref(params)):
        raise ValueError(f"llama.cpp cannot make {name} of {source}")


class Table:
    """The JSON file of rows, and what measures a GGUF file against the dense model."""

    def __init__(self, path: pathlib.Path, model: Model, ids: np.ndarray, windows: int, says: dict):
        self.path, self.model, self.ids, self.windows = path, model, ids, windows
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        self.results = says | {"rows": rows}
        text = jax.numpy.asarray(ids[: windows * 1024].reshape(-1, 1024))
        self.dense = {"ids": text, "logits": None}

    def rows(self) -> dict[str, dict]:
        """The rows that there are, by name."""
        return {row["name"]: row for row in self.results["rows"]}

    def add(self, name: str, file: pathlib.Path, **more) -> None:
        """Measures a file and writes its row."""
        if self.dense["logits"] is None:  # once, for all rows
            run = jax.jit(self.model.apply)
            logits = [run(self.model.params, window[None])[0] for window in self.dense["ids"]]
            self.dense["logits"] = jax.numpy.stack(logits)
        look_up = lambda t, w: t["logits"][(t["ids"] == w).all(-1).argmax()][None]
        options = {"reference": (look_up, self.dense), "windows": self.windows}
        small = models.load(file)
        evaluation = jm.evaluate(self.model.apply, small.params, self.ids, **options)
        scores = json.loads(evaluation.to_json())
        keys = ("tokens", "perplexity", "dense_perplexity", "kl", "agreement")
        row = {"name": name, "bytes": file.stat().st_size} | {key: scores[key] for key in keys}
        self.results["rows"].append(row | more)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        print(name, row["bytes"], scores["kl"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rows", default=".*", help="a regex of the names of our rows")
    parser.add_argument("--files", type=pathlib.Path, help="a folder for the files, which stay")
    args = parser.parse_args()
    model = models.rotate(models.load("smollm2-135m"))
    text = args.text.read_text(encoding="utf-8")
    encode = lambda t: np.asarray(model.tokenizer.encode(t, add_special_tokens=False).ids)
    calibration, ids = encode(text[: len(text) // 2]), encode(text[len(text) // 2 :])
    says = {
        "command": f"{COMMAND} --clients FOLDER --text {args.text.name} --windows {args.windows}",
        "jax": jax.__version__,
        "llama.cpp": "node-llama-cpp 3.22.1",
        "model": model.source,
        "importance_windows": IMPORTANCE_WINDOWS,
        "fit_windows": FIT_WINDOWS,
        "windows": args.windows,
    }
    table = Table(pathlib.Path(__file__).with_suffix(".json"), model, ids, args.windows, says)
    with tempfile.TemporaryDirectory() as temporary, kept_programs():
        folder = args.files or pathlib.Path(temporary)
        theirs(table, args.clients, calibration, folder)
        sizes = {name: table.rows()[f"llama.cpp {name}"]["bytes"] for name in FILE_TYPES}
        limits = {"Q4_K_M": sizes["Q4_K_M"], "110 MB": SMALL} | sizes
        for name, limit in limits.items():
            for text in (None, calibration):
                row = f"fit {name}" if text is not None else f"fit {name}, without a text"
                if row not in table.rows() and re.fullmatch(args.rows, row):
                    ours(table, text, folder, row, limit)
            row = f"weighted {name}"
            if row not in table.rows() and re.fullmatch(args.rows, row):
                weighted(table, calibration, folder, row, limit)


def theirs(table: Table, clients: pathlib.Path, ids: np.ndarray, folder: pathlib.Path) -> None:
    """The rows of llama.cpp's own files."""
    dense, matrix = folder / "dense.gguf", None
    for name in FILE_TYPES:
        if f"llama.cpp {name}" not in table.rows():
            if matrix is None:
                jm.interop.to_gguf(dense, table.model)
                matrix = importance(table.model, ids)
            quantize(clients, str(dense), str(folder / "theirs.gguf"), name, matrix)
            table.add(f"llama.cpp {name}", folder / "theirs.gguf")
    dense.unlink(missing_ok=True)


def ours(table: Table, ids: np.ndarray | None, folder: pathlib.Path, name: str, limit: int) -> None:
    """The row of one fit into `limit` bytes, calibrated on `ids` (tokens,) if there are any."""
    file = folder / f"{name}.gguf"
    windows = None if ids is None else FIT_WINDOWS
    options = jm.FitOptions(target="gguf", tune_steps=0, windows=windows)
    show = lambda stage, done, total: print(stage, done, total, file=sys.stderr, flush=True)
    fitted = jm.fit(table.model, limit, calibrate=ids, options=options, progress=show)
    written = jm.interop.to_gguf(file, fitted.model)
    more = {"fit_bytes": fitted.file_nbytes, "decoded": written.decoded}
    more |= {"plan": str(fitted.plan).splitlines(), "calibration": fitted.done}
    table.add(name, file, **more)


def weighted(table: Table, ids: np.ndarray, folder: pathlib.Path, name: str, limit: int) -> None:
    """The row of a plan as `fit` makes one, with ranges weighted by E[x²], and without GPTQ.

    `ids` (tokens,) calibrate: bits go by what an error costs, by its Fisher information.
    """
    model, file = table.model, folder / f"{name}.gguf"
    ways = jm.uses(model.apply, model.tensors, *example_inputs(model))
    forms = target_forms(model, "gguf", ways, limit)
    moments = input_moments(model, ids, windows=IMPORTANCE_WINDOWS)
    options = {"uses": ways, "stats": moments, "sensitivity": error_costs(model, ids)}
    with forms.whole_file(limit) as nbytes:
        plan = plan_integers(model.tensors, nbytes, forms.candidates, **options)
    plan = search_ranges(plan)
    moments = {path: moment for path, moment in moments.items() if path in plan}
    encoded = jm.encode(model.tensors, plan, uses=ways, stats=moments)
    written = jm.interop.to_gguf(file, dataclasses.replace(model, tensors=encoded))
    table.add(name, file, decoded=written.decoded, plan=str(plan).splitlines())


if __name__ == "__main__":
    sys.exit(main())
