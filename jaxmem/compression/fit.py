"""fit: a model in a number of bytes, by the plan that loses least."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.arguments import BYTES, Kind, takes
from ..core.lifting import lift
from ..core.usage import uses
from ..io.scalar_writers import ScalarWriter
from ..models.example_inputs import example_inputs
from ..models.flax_model import FlaxModel
from ..models.model import Model
from ..models.rotation import rotate
from .budgeting import budget
from .candidates import techniques
from .encoding import encode
from .fit_activations import round_inputs
from .fit_calibrated import (
    fit_by_integers,
    gptq_batches,
    search_ranges,
    text_rows,
    tune_scales,
)
from .fit_file_format import FILE_TARGETS, file_nbytes, target_forms
from .fit_in_one_pass import CALIBRATION, are_batches, calibration_batches, fit_in_one_pass
from .fit_inputs import abstract, calibration_ids, check_dense
from .fit_integers import plan_integers
from .fit_options import FitOptions
from .fit_platform import fast_integers
from .fit_result import Fitted
from .fit_structures import INTEGERS, STRUCTURES, fit_by_techniques
from .plan import Plan
from .product_forms import PLATFORMS
from .progress import Progress, stage
from .reporting import report
from .scan_cut import scans_layers
from .token_seconds import SecondsLimit, predicted_speed, seconds_limit

DEFAULTS = FitOptions()


def _is_pair(x: Any) -> bool:
    """Whether `x` is (apply, params, ...)."""
    return isinstance(x, tuple) and len(x) >= 2 and callable(x[0])


_MODEL = Kind(
    "a Model, such as jm.models.load reads, or (apply, params)",
    lambda x: isinstance(x, Model) or _is_pair(x),
)


@takes(model=_MODEL, nbytes=BYTES, calibrate=CALIBRATION)
def fit(
    model: Model | tuple,
    nbytes: int,
    *,
    calibrate: Any = None,
    options: FitOptions = DEFAULTS,
    progress: Progress | None = None,
    writer: ScalarWriter | None = None,
) -> Fitted:
    """The model in at most `nbytes` bytes, by the plan that loses least.

    Without data, ranges are searched, weights are read a layer at a time, and the dense model is
    never held. With data, ranges are weighted by what the weights are fed, GPTQ makes later inputs
    up for the errors of earlier ones, block by block, and scales are tuned on the dense model's
    logits; the dense model is held.

    Args:
        model: a dense `Model`, also of your own module (`jm.models.from_flax`); or a bare `(apply,
            params)`, where `apply(params, *batch)` is any function. Shapes of a batch may follow,
            `(apply, params, *shapes)`: they tell without data how each weight is used; where
            neither they nor data are given, each weight is taken to be summed over its second last
            axis, as linen and NNX kernels are.
        nbytes: the most bytes that the encoded params may take; with a `target` in the options, the
            whole file that an export writes.
        calibrate: token ids (tokens,) of a text of the kind that a language `Model` will read, at
            least one window of 1,024 (or the model's context); for a bare function an iterable of
            batches, each a tuple. Batches are solved in one pass, with a Gram matrix for each
            weight; only with `FitOptions(logits=True)` are scales tuned on them. A `Model`, such as
            an encoder-decoder that reads sounds, takes a list of batches too, each what its `apply`
            takes. If your own module does not scan over its layers, a text is solved in one pass.
        options: what the budget chooses among, and how much work is done.
        progress: called as `progress(stage, done, total)` when a stage starts, advances and ends.
        writer: its `write_scalars(step, {"fit/kl": loss})` is called for the steps of scale
            tuning on a text, as that of `jm.train` is.

    Raises:
        ValueError: no choice is as small as `nbytes` (the message gives the smallest size); weights
            that are encoded, abstract or not finite; structures to remove without data or from a
            bare function; ids that are too few or not those of a language model; `logits` without
            batches; a `target` that cannot hold the model, or multiplies none of its weights fast;
            a `speed` that no choice reaches.
        TypeError: `model` is neither; ids for a bare function.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (128, 256))}
        >>> fitted = jm.fit((lambda params, x: x @ params["w"], params), 20_000)
        >>> print(fitted)
        32,768 weights in 17,664 bytes, 4.31 bits each
        >>> apply, encoded = fitted.model
        >>> apply(encoded, jnp.ones((1, 128))).shape
        (1, 256)
    """
    if options.windows is not None and calibrate is None:
        raise ValueError(f"windows is {options.windows}, and there is no text; give calibrate=ids")
    is_model = isinstance(model, Model)
    if options.logits and (calibrate is None or (is_model and not are_batches(calibrate))):
        raise ValueError("logits is True without batches; give calibrate=[(array, ...), ...]")
    text = is_model and calibrate is not None and not are_batches(calibrate)
    if options.judge is not None and (not text or model.tokenizer is None):
        raise ValueError(
            f"judge is the task {options.judge.name}, which wants a Model with a tokenizer, and "
            "calibrate=ids of a text"
        )
    if writer and not text:
        raise ValueError("writer takes the steps of tuning on a text; give calibrate=ids")
    if isinstance(model, FlaxModel) or (is_model and are_batches(calibrate)):
        return _fit_module(model, nbytes, calibrate, options, progress, writer)
    if is_model:
        return _fit_model(model, nbytes, calibrate, options, progress, writer)
    return _fit_function(*model[:2], model[2:], nbytes, calibrate, options, progress)


def _fit_model(model, nbytes, calibrate, options, progress, writer) -> Fitted:
    check_dense(model.tensors, model.source)
    structures = set(options.among) & set(STRUCTURES)
    if structures and calibrate is None:
        raise ValueError(f"{', '.join(sorted(structures))}: removed by a text; give calibrate=ids")
    ids = None if calibrate is None else calibration_ids(model, calibrate, options.windows)
    model = rotate(model) if options.rotate else model
    if options.target in FILE_TARGETS:
        return _fit_for_target(model, nbytes, ids, options, progress, writer)
    record, fast, ways, limit = {}, None, None, None
    if ids is None or options.target is not None:
        ways = uses(model.apply, model.tensors, *example_inputs(model))
    if options.target is not None:
        many = not hasattr(model.config, "cache")  # an encoder never reads one token alone
        fast = fast_integers(model.tensors, nbytes, options.target, ways, many_rows=many)
        limit = seconds_limit(model.tensors, options, ways)
    if ids is None:
        rest = options.among, ways, progress, fast, limit, options.activations
        plan, encoded = _without_data(model.tensors, nbytes, *rest)
    elif options.among == INTEGERS:
        rest = options.tune_steps, progress, fast, options.judge, writer, limit
        activations = options.activations
        plan, encoded, record = fit_by_integers(model, nbytes, ids, *rest, activations=activations)
    else:
        rest = options.tune_steps, progress, options.judge, writer
        model, plan, encoded, record = fit_by_techniques(model, nbytes, options.among, ids, *rest)
    # Errors are reported where the dense model is held anyway: a decoded embedding is large.
    dense = abstract(model.tensors) if ids is None else model.params
    fitted = dataclasses.replace(model, tensors=encoded)
    speed = predicted_speed(model.tensors, encoded, options, ways)
    return Fitted(fitted, plan, encoded, report(dense, encoded), record, speed=speed)


def _fit_for_target(model, nbytes, ids, options, progress, writer) -> Fitted:
    """A model in the forms of a file format; `nbytes` is the size of the whole file."""
    ways = uses(model.apply, model.tensors, *example_inputs(model))
    forms, record = target_forms(model, options.target, ways, nbytes), {}
    with forms.whole_file(nbytes) as limit:
        if ids is None:
            candidates = options.among, ways, progress, forms.candidates
            plan, encoded = _without_data(model.tensors, limit, *candidates)
        else:
            rest = options.tune_steps, progress, forms.candidates, options.judge, writer
            plan, encoded, record = fit_by_integers(model, limit, ids, *rest)
    dense = abstract(model.tensors) if ids is None else model.params
    fitted = dataclasses.replace(model, tensors=encoded)
    size = file_nbytes(model, encoded, options.target)
    return Fitted(fitted, plan, encoded, report(dense, encoded), record, size)


def _fit_function(apply, params, shapes, nbytes, calibrate, options, progress) -> Fitted:
    batches = None if calibrate is None else calibration_batches(calibrate, options.windows)
    plan, encoded, record = _encode(apply, params, shapes, nbytes, batches, options, progress)
    speed = _speed(apply, params, encoded, batches[0] if batches else shapes, options)
    of = report(params, encoded)
    return Fitted((lift(apply), encoded), plan, encoded, of, record, speed=speed)


def _speed(apply, params, encoded, inputs, options) -> float | None:
    """`predicted_speed` of a function of `inputs`, of which there may be none."""
    if options.target not in PLATFORMS:
        return None
    ways = uses(apply, params, *inputs) if inputs else None
    return predicted_speed(params, encoded, options, ways)


def _fit_module(model: FlaxModel, nbytes, calibrate, options, progress, writer) -> Fitted:
    """A module of the user on a text, block by block if it scans over its layers; or batches."""
    is_text = calibrate is not None and not are_batches(calibrate)
    rows = None
    if is_text:
        rows = text_rows(model, calibration_ids(model, calibrate, options.windows))
        if options.among == INTEGERS and scans_layers(model.apply, model.tensors, (rows[:1],)):
            return _fit_model(model, nbytes, calibrate, options, progress, writer)
        _refuse_judge(options)
        batches = gptq_batches(rows)
    else:
        batches = calibrate and calibration_batches(calibrate, options.windows)
    run, params, shapes = model.apply, model.params, example_inputs(model)
    plan, encoded, record = _encode(run, params, shapes, nbytes, batches, options, progress)
    if is_text and options.tune_steps:
        steps = options.tune_steps, progress
        encoded = tune_scales(model, params, encoded, rows, *steps, writer=writer)
        record |= {"tuning_steps": options.tune_steps}
    fitted = dataclasses.replace(model, tensors=encoded)
    speed = _speed(run, params, encoded, batches[0] if batches else shapes, options)
    return Fitted(fitted, plan, encoded, report(params, encoded), record, speed=speed)


def _refuse_judge(options: FitOptions) -> None:
    """Where one plan is made, as of a module without a scan over layers, there is no choice."""
    if options.judge is not None:
        raise ValueError(
            f"judge is the task {options.judge.name}, and there is one plan to choose: the module "
            "does not scan over its layers, or chooses among more than integers"
        )


def _encode(apply, params, shapes, nbytes, batches, options, progress) -> tuple[Plan, Any, dict]:
    """(the plan that fits `nbytes`, the encoded params, a record), for any function."""
    check_dense(params, "params")
    structures = set(options.among) & set(STRUCTURES)
    if options.target in FILE_TARGETS:
        what = f"target {options.target!r}"
        raise ValueError(f"{what}: wants a Model that jm.models.load gives, and no batches")
    if structures or options.rotate:
        what = ", ".join(sorted(structures)) or "rotate"
        raise ValueError(f"{what}: wants a Model that jm.models.load gives, and no batches")
    if batches is not None:
        return fit_in_one_pass(apply, params, nbytes, batches, options, progress)
    ways, fast, limit = uses(apply, params, *shapes) if shapes else None, None, None
    if options.target is not None:
        fast = fast_integers(params, nbytes, options.target, ways)
        limit = seconds_limit(params, options, ways)
    rest = options.among, ways, progress, fast, limit, options.activations
    return *_without_data(params, nbytes, *rest), {}


def _without_data(
    params: Any,
    nbytes: int,
    among: tuple,
    ways: Mapping | None,
    progress: Progress | None,
    candidates: Mapping | None = None,
    seconds: SecondsLimit | None = None,
    activations: str | None = None,
) -> tuple[Plan, Any]:
    """(the plan that fits `nbytes`, the params encoded by it), each range searched."""
    with stage(progress, f"planning {nbytes:,} bytes"):
        if among == INTEGERS:
            limits = {"uses": ways, "seconds": seconds}
            plan = search_ranges(plan_integers(params, nbytes, candidates, **limits))
            plan = round_inputs(plan, ways, activations)
        else:
            candidates = techniques(params, among, uses=ways)
            plan = budget(params, nbytes=nbytes, candidates=candidates, uses=ways)
    with stage(progress, "encoding"):
        return plan, encode(params, plan, uses=ways)
