"""fit: a model in a number of bytes, as a directory that every command and `load` read."""

import dataclasses
import hashlib
import json
import math
import pathlib
import time
from typing import Annotated, Any, Literal

import jax
from tyro.conf import arg

import jaxmem as jm

from ..compression.fit import fit
from ..compression.fit_calibrated import TURNS
from ..compression.fit_inputs import check_dense
from ..compression.fit_options import FitOptions, Target
from ..compression.fit_result import Fitted
from ..compression.fit_structures import INTEGERS, STRUCTURES, Technique
from ..core.paths import is_whole
from ..evaluation import Task, read_task
from ..evaluation.origin import FIT_RECORD
from ..io.atomic import write_whole
from ..models import Model, rotate
from ..models.example_inputs import window
from ..models.model import RECORD
from . import options
from .decode_speed import Times, measured_speed, speed_line
from .eval import as_data, measure
from .mesh_option import MeshOption, mesh_line, parse, spread
from .mesh_option import as_data as places_of
from .output import Output
from .output_path import check_out
from .sizes import Size, show


@dataclasses.dataclass(frozen=True)
class Fit(options.SourceOptions):
    """Encodes a model into a number of bytes, with the least harm, and saves it.

    Without --text and --calibrate the weights are read a layer at a time, and the dense model is
    never held.
    """

    _: dataclasses.KW_ONLY
    nbytes: Annotated[Size, arg(name="bytes")]
    """The most that the weights may take: 100MB, 95MiB, 1.5GB or a number of bytes."""
    out: Annotated[str, arg(metavar="DIR")]
    """A directory to write; it appears whole or not at all."""
    target: Annotated[Target | None, arg(name="for")] = None
    """A file format that holds the result exactly: --bytes is then the size of the whole file that
    `jaxmem export` writes of DIR. Or what the result runs on, cpu, tpu or gpu: only forms that are
    multiplied there without writing decoded weights to memory are chosen."""
    speed: Times = None
    """With --for cpu, tpu or gpu: at least so many times the dense weights' speed (2x), by a
    prediction of the products of a token; on this CPU the tokens a second are measured, too."""
    activations: Literal["int8"] | None = None
    """int8: the inputs of products are rounded, too, each token in a range of its own, and meet the
    integers of the weights: prompts and encoders run faster, one token alone does not."""
    among: tuple[Technique, ...] = INTEGERS
    """What one budget chooses among: int (codes of 2 to 8 bits), sparsity and n:m (with codes for
    the weights that stay), rank (low rank, alone and beside codes), and, with --calibrate, fewer
    neurons, heads or layers or less width, which make a smaller model."""
    calibrate: Annotated[tuple[str, ...], arg(metavar="FILE [FILE ...]")] = ()
    """A text of the kind the model will read: ranges are weighted by it, GPTQ makes later inputs
    up for what earlier ones lost, and scales are tuned on what the dense model says. Several, such
    as one for each language, are read by turns, as many tokens of each as the shortest has."""
    judge: Annotated[str, arg(metavar="kl|task:FILE")] = "kl"
    """With --calibrate, what makes the last choice among plans: the KL divergence to the dense
    model, or the score in the task of a FILE that jm.evaluation.write_task wrote."""
    tune: Annotated[int | None, arg(metavar="STEPS")] = None
    """With --calibrate, steps of scale tuning, 64 unless given; each is a backward pass through
    the whole model."""
    text: options.TextFile = None
    """A text to compare the result with the original on; not the one it was calibrated with."""
    windows: options.Count = None
    """Windows of 1,024 tokens of --text to read; all of them unless given."""
    rotate: bool = False
    """Turn the residual stream first: the same function, its outliers spread."""
    force: bool = False
    """Replace DIR when it was written by `jaxmem fit`."""
    mesh: MeshOption = None

    def run(self, output: Output) -> dict:
        """Fits, shows the result on `output`, and returns it as plain data."""
        out = check_out(self.out, makes_parents=True)
        check_free(out, self.force)
        fit_options = self._fit_options()
        mesh = parse(self.mesh) if self.mesh else None
        texts = {path: options.read(path) for path in (self.text, *self.calibrate) if path}
        if self.text and self.text in self.calibrate:
            raise ValueError(f"{self.text} is both --text and --calibrate, expected two texts")
        model = self.load()
        check_dense(model.tensors, model.source)
        if self.text:  # before the work, not after it
            options.tokens(model, texts[self.text], self.windows)
        dense = rotate(model) if self.rotate else model
        calibrate, shares = None, {}
        if self.calibrate:
            ids = {path: options.tokens(dense, texts[path]) for path in self.calibrate}
            if len(ids) < len(self.calibrate):
                raise ValueError(f"--calibrate names a text twice: {', '.join(self.calibrate)}")
            calibrate = ids[self.calibrate[0]]
            shares = {self.calibrate[0]: len(calibrate)}
            if len(ids) > 1:
                calibrate, shares = jm.calibration.mix_texts(ids, window(dense))
        start = time.perf_counter()
        with output.stages() as progress:
            fitted = fit(
                dense, self.nbytes, calibrate=calibrate, options=fit_options, progress=progress
            )
        seconds = time.perf_counter() - start
        output.say(work_line(fitted))
        if len(shares) > 1:
            counts = (f"{path}: {count:,}" for path, count in shares.items())
            output.say(f"tokens of each text by turns: {', '.join(counts)}")
        measured = self._show_speed(output, dense, fitted)
        report, encoded = fitted.report, fitted.params
        if self.text and not self.calibrate:  # the dense model is held then, too
            report = jm.report(dense.params, encoded)
        show_report(output, fitted.plan, report)
        evaluation, places = None, {}
        if mesh is not None:
            encoded, where = spread(fitted.model, encoded, mesh)
            places = places_of(self.mesh, where)
            output.say(mesh_line(places))
        if self.text:
            evaluation = measure(
                output,
                dataclasses.replace(fitted.model, tensors=encoded),
                texts[self.text],
                windows=self.windows,
                reference=dense,
            )
            output.say(evaluation)
        calibration = {
            path: {"sha256": hashlib.sha256(texts[path].encode()).hexdigest(), "tokens": count}
            for path, count in shares.items()
        }
        with output.step("saving"):
            fitted.model.save(out, encoded)
            record = {"seconds": seconds, "calibration": calibration}  # which a card reads
            write_whole(out / FIT_RECORD, json.dumps(record).encode())
        figures = sizes(model, encoded) | {
            "limit_bytes": self.nbytes,
            "calibration": fitted.done or None,
            "calibration_texts": calibration or None,
            "out": str(out),
            "target": self.target,
            "target_bytes": fitted.file_nbytes,
            "predicted_speed": fitted.speed,
            "measured_speed": measured,
            "file_bytes": sum(file.stat().st_size for file in out.iterdir()),
        }
        output.say(summary(figures))
        return figures | {
            "source": fitted.model.source,
            "plan": json.loads(jm.Plan(dict(fitted.plan)).to_json()),
            "report": json.loads(report.to_json()),
            "evaluation": None if evaluation is None else as_data(evaluation),
            **places,
        }

    def _show_speed(self, output: Output, dense: Model, fitted: Fitted) -> float | None:
        """Shows the speed that is predicted; with --speed for this CPU, measures and returns it."""
        if fitted.speed is None or self.target is None:
            return None
        measured = None
        if self.speed and self.target == jax.default_backend() == "cpu":
            with output.step("measuring tokens a second"):
                measured = measured_speed(dense, fitted.model)
        output.say(speed_line(fitted, self.target, measured))
        return measured

    def _fit_options(self) -> FitOptions:
        steps = options.steps(self.tune, self.calibrate, FitOptions().tune_steps)
        if set(self.among) & set(STRUCTURES) and not self.calibrate:
            names = ", ".join(STRUCTURES)
            raise ValueError(f"{names} are removed by what a text needs of them: give --calibrate")
        if self.judge != "kl" and not self.calibrate:
            raise ValueError(
                f"--judge {self.judge} chooses among plans of a text: give --calibrate"
            )
        judge = None if self.judge == "kl" else task_of(self.judge)
        # `run` rotates
        return FitOptions(
            among=self.among,
            tune_steps=steps,
            target=self.target,
            speed=self.speed,
            activations=self.activations,
            judge=judge,
        )


def task_of(judge: str) -> Task:
    """The task of `task:FILE`.

    Raises:
        ValueError: it is something else, or the file is not of a task.
        FileNotFoundError: there is no such file.
    """
    kind, _, path = judge.partition(":")
    if kind != "task" or not path:
        raise ValueError(f"--judge is {judge!r}, expected kl or task:FILE")
    return read_task(path)


def check_free(path: pathlib.Path, force: bool) -> None:
    """Refuses, before any work, to write to a place that is taken.

    Raises:
        ValueError: it is not a directory that `fit` wrote, or it is and `force` was not given.
    """
    if not path.exists():
        return
    if not (path / RECORD).is_file():
        raise ValueError(f"{path} exists and was not written by jaxmem fit; choose another --out")
    if not force:
        raise ValueError(f"{path} exists; --force replaces it")


def work_line(fitted: Fitted) -> str:
    """One line that says how the weights were encoded."""
    done = fitted.done
    if not done:
        return "ranges searched, without data"
    solved = f"ranges weighted by E[x²], then GPTQ and {TURNS} turns of codes and scales by block"
    if "structures" in done:
        compared = [(row["structure"], row["kl"]) for row in done["structures"] if "kl" in row]
        solved = "every weight by its technique's solver, block by block"
    else:
        compared = list(done["plans_kl"].items())
    if compared:
        scores = done.get("plans_score", {})
        scores |= {x["structure"]: x["score"] for x in done.get("structures", ()) if "score" in x}
        shown = lambda name: f", {done['judge']} {scores[name]:.3f}" if name in scores else ""
        named = ", ".join(f"{name}: KL {kl:.4f}{shown(name)}" for name, kl in compared)
        chosen = f"bits chosen {done['plan']} " if "plan" in done else ""
        solved = f"{chosen}({named}), {solved}"
    tuned = f", then {done['tuning_steps']} steps of scale tuning" if done["tuning_steps"] else ""
    return f"{solved} on {done['tokens']:,} tokens{tuned}"


def show_report(output: Output, plan: jm.Plan, report: Any) -> None:
    """Shows a row for each weight: its codec, its bytes and its relative error."""
    rows = [
        (
            row.path,
            plan.get(row.path, "kept"),
            show(row.encoded),
            f"{row.bits_per_weight:.2f}",
            "" if row.error is None else f"{row.error:.4f}",
        )
        for row in report.rows
    ]
    output.table("", ("weight", "codec", "bytes", "bits/weight", "error"), rows)


def sizes(model: Model, encoded: Any) -> dict:
    """Bytes before and after, and bits per weight over all weights."""
    leaves = jax.tree.leaves(model.tensors, is_leaf=is_whole)
    weights = sum(math.prod(x.shape) for x in leaves)
    dense = sum(jm.nbytes(jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in leaves)
    size = jm.nbytes(encoded)
    bits = 8 * size / weights
    return {"weights": weights, "dense_bytes": dense, "bytes": size, "bits_per_weight": bits}


def summary(figures: dict) -> str:
    """One line with the bytes of a fit and where it was written."""
    target, size = figures["target"], figures["target_bytes"]
    exported = f"{size:,} bytes exported as {target}; " if size else ""
    return (
        f"{figures['weights']:,} weights in {figures['bytes']:,} bytes "
        f"of {figures['limit_bytes']:,}, {figures['bits_per_weight']:.2f} bits each "
        f"({figures['dense_bytes']:,} bytes dense); {exported}"
        f"written to {figures['out']}, {figures['file_bytes']:,} bytes"
    )
