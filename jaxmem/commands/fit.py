"""fit: a model in a number of bytes, as a directory that every command and `load` read."""

import dataclasses
import json
import math
import pathlib
from typing import Annotated, Any

import jax
from tyro.conf import arg

import jaxmem as jm

from ..compression import fit_calibrated, fit_structures
from ..compression.budgeting import Unreachable
from ..compression.layer_errors import CANDIDATES
from ..core.paths import is_whole
from ..models import Model, load, rotate
from ..models.model import RECORD
from . import options
from .eval import as_data, measure
from .inspect import shapes
from .mesh_option import MeshOption, parse, spread, told
from .mesh_option import as_data as places_of
from .output import Output
from .sizes import Size, show

TUNING = 64  # steps
FEWEST = tuple(jm.Int(2, group=group, symmetric=False) for group in (32, 64))


@dataclasses.dataclass(frozen=True)
class Fit:
    """Encodes a model into a number of bytes, with the least harm, and saves it.

    Without --text and --calibrate the weights are read a layer at a time, and the dense model is
    never held.
    """

    model: options.ModelName
    _: dataclasses.KW_ONLY
    nbytes: Annotated[Size, arg(name="bytes")]
    """The most that the weights may take: 100MB, 95MiB, 1.5GB or a number of bytes."""
    out: Annotated[str, arg(metavar="DIR")]
    """A directory to write; it appears whole or not at all."""
    among: tuple[fit_structures.Technique, ...] = fit_structures.INTEGERS
    """What one budget chooses among: int (codes of 2 to 8 bits), sparsity and n:m (with codes for
    what stays), rank (low rank, alone and beside codes), and, with --calibrate, fewer neurons,
    heads or layers or less width, which make a smaller model."""
    calibrate: options.TextFile = None
    """A text of the kind the model will read: ranges are weighted by it, GPTQ makes later inputs
    up for what earlier ones lost, and scales are tuned on what the dense model says."""
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
    json: options.Json = False

    def run(self, output: Output) -> dict:
        """What was done, which `output` shows."""
        out = pathlib.Path(self.out)
        check_out(out, self.force)
        fit_structures.check(self.among, self.calibrate)
        steps = options.steps(self.tune, self.calibrate, TUNING)
        mesh = parse(self.mesh) if self.mesh else None
        texts = {path: options.read(path) for path in (self.text, self.calibrate) if path}
        if self.text and self.text == self.calibrate:
            raise ValueError(f"{self.text} is both --text and --calibrate, expected two texts")
        model = load(self.model)
        check_dense(model)
        if self.text:  # before the work, not after it
            options.tokens(model, texts[self.text], self.windows)
        model = whole = rotate(model) if self.rotate else model
        if self.calibrate and self.among != fit_structures.INTEGERS:
            given = (self.among, texts[self.calibrate], steps)
            model, plan, encoded, done = encode_chosen(output, whole, self.nbytes, *given)
            output.say(fit_calibrated.told(done))
        elif self.calibrate:
            given = (texts[self.calibrate], steps)
            plan, encoded, done = encode_calibrated(output, model, self.nbytes, *given)
            output.say(fit_calibrated.told(done))
        else:
            plan, encoded = encode_within(output, model, self.nbytes, self.among)
            done = None
            output.say("ranges searched, without data")
        # errors are taken where the dense model is held anyway: a decoded embedding is large
        held = model.params if self.calibrate or self.text else shapes(model)
        report = jm.report(held, encoded)
        show_report(output, plan, report)
        evaluation, places = None, {}
        if mesh is not None:
            encoded, where = spread(model, encoded, mesh)
            places = places_of(self.mesh, where)
            output.say(told(places))
        if self.text:
            small = dataclasses.replace(model, tensors=encoded)
            how = {"windows": self.windows, "reference": whole}
            evaluation = measure(output, small, texts[self.text], **how)
            output.say(evaluation)
        with output.step("saving"):
            model.save(out, encoded)
        found = sizes(whole, encoded) | {
            "limit_bytes": self.nbytes,
            "calibration": done,
            "out": str(out),
            "file_bytes": sum(file.stat().st_size for file in out.iterdir()),
        }
        output.say(summary(found))
        return found | {
            "source": model.source,
            "plan": json.loads(plan.to_json()),
            "report": json.loads(report.to_json()),
            "evaluation": None if evaluation is None else as_data(evaluation),
            **places,
        }


def check_out(path: pathlib.Path, force: bool) -> None:
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


def check_dense(model: Model) -> None:
    """Refuses a model without weights, or whose weights are encoded.

    Raises:
        ValueError: it is one.
    """
    for leaf in jax.tree.leaves(model.tensors, is_leaf=is_whole):
        if isinstance(leaf, jax.ShapeDtypeStruct) or jm.is_encoded(leaf):
            raise ValueError(f"{model.source}: expected a model with dense weights")


def encode_within(
    output: Output, model: Model, nbytes: int, among: tuple = fit_structures.INTEGERS
) -> tuple[jm.Plan, Any]:
    """The plan that fits `nbytes`, with each range searched, and the tensors encoded by it."""
    if among != fit_structures.INTEGERS:
        return fit_structures.without_text(output, model, nbytes, among)
    uses = jm.uses(model.apply, model.tensors, *options.inputs(model))
    with output.step(f"planning {show(nbytes)}"):
        plan = planned(model, nbytes, uses=uses)
    plan = jm.Plan({path: jm.Search(codec) for path, codec in plan.items()})
    with output.step("encoding"):
        return plan, jm.encode(model.tensors, plan, uses=uses)


def planned(model: Model, nbytes: int, **how: Any) -> jm.Plan:
    """The plan that `budget` makes of 3 to 8 bits, and of 2 only where 3 are too many."""
    try:
        return jm.budget(model.tensors, nbytes=nbytes, **how)
    except Unreachable:
        return jm.budget(model.tensors, nbytes=nbytes, candidates=(*FEWEST, *CANDIDATES), **how)


def encode_calibrated(
    output: Output, model: Model, nbytes: int, text: str, steps: int
) -> tuple[jm.Plan, Any, dict]:
    """The plan that fits `nbytes`, the tensors encoded by it on a text, and what was done."""
    with output.step("calibrating: what weights are fed"):
        stats = fit_calibrated.moments(model, text)
    with output.step("calibrating: what an error costs"):
        costs = fit_calibrated.costs(model, text)
    uses = jm.uses(model.apply, model.tensors, *options.inputs(model))
    plans = {}
    with output.step(f"planning {show(nbytes)}"):
        for name, sensitivity in {"by Fisher information": costs, "by role": None}.items():
            how = {"uses": uses, "stats": stats, "sensitivity": sensitivity}
            plans[name] = planned(model, nbytes, **how)
    name, compared = fit_calibrated.least(output, model, plans, uses, text)
    plan = fit_calibrated.solvers(plans[name], uses)
    encoded, done = fit_calibrated.encode(output, model, plan, text, steps)
    return plan, encoded, done | {"plan": name, "plans_kl": compared}


def encode_chosen(
    output: Output, model: Model, nbytes: int, among: tuple, text: str, steps: int
) -> tuple[Model, jm.Plan, Any, dict]:
    """(the model that stays, its plan over all techniques, the tensors encoded, what was done)."""
    small, plan, structures = fit_structures.with_text(output, model, nbytes, among, text)
    encoded, done = fit_calibrated.encode(output, small, plan, text, steps, dense=model)
    return small, plan, encoded, done | {"structures": structures}


def show_report(output: Output, plan: jm.Plan, report: Any) -> None:
    """A row a weight: what it became, and how far that is from what it was."""
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


def summary(found: dict) -> str:
    """One line of what a fit did."""
    return (
        f"{found['weights']:,} weights in {found['bytes']:,} bytes of {found['limit_bytes']:,}, "
        f"{found['bits_per_weight']:.2f} bits each ({found['dense_bytes']:,} bytes dense); "
        f"written to {found['out']}, {found['file_bytes']:,} bytes"
    )
