"""Public functions refuse an argument of a wrong kind by its name, with the value and the cure."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.core.arguments import TREE

PARAMS = {"w": jnp.ones((32, 8))}
X = jnp.ones((2, 32))
PLAN = {"w": jm.Int(8)}
FN = lambda params, x: x @ params["w"]
CALLS = {
    "nbytes": (jm.nbytes, {"tree": PARAMS}),
    "paths": (jm.paths, {"tree": PARAMS}),
    "split": (jm.split, {"tree": PARAMS, "keep": bool}),
    "choose": (jm.choose, {"params": PARAMS, "rules": PLAN, "uses": {}}),
    "encode": (jm.encode, {"params": PARAMS, "plan": PLAN, "uses": {}, "stats": {}}),
    "uses": (jm.uses, {"fn": FN, "params": PARAMS}),
    "lift": (jm.lift, {"fn": FN}),
    "stats": (jm.stats, {"fn": FN, "params": PARAMS, "batches": [(X,)]}),
    "fisher": (jm.fisher, {"fn": FN, "params": PARAMS, "batches": [(X,)]}),
    "gradients": (jm.gradients, {"loss": FN, "params": PARAMS, "batches": [(X,)], "uses": {}}),
    "budget": (jm.budget, {"params": PARAMS, "nbytes": 600, "runs": 1, "uses": {}, "stats": {}}),
    "errors": (jm.errors, {"params": PARAMS, "uses": {}, "stats": {}, "known": {}}),
    "techniques": (jm.techniques, {"params": PARAMS, "kinds": ["int"], "uses": {}}),
    "report": (jm.report, {"params": PARAMS, "enc": PARAMS, "uses": {}}),
    "uniform": (jm.uniform, {"params": PARAMS, "density": 0.5, "where": "w"}),
    "shardings": (jm.shardings, {"tree": PARAMS, "mesh": jm.mesh(fsdp=8), "rules": {"w": P()}}),
    "placement": (jm.placement, {"tree": PARAMS, "mesh": jm.mesh(fsdp=8), "rules": {"w": P()}}),
}
EACH = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]


@pytest.mark.parametrize("name, argument", EACH)
def test_an_argument_of_another_kind_is_refused_by_name(name, argument):
    fn, arguments = CALLS[name]
    for wrong in (object(), -1.5j, b"x"):
        with pytest.raises(TypeError, match=f"^{name}: {argument} is .*, expected a"):
            fn(**arguments | {argument: wrong})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: jm.nbytes("model.gguf"), "tree is 'model.gguf', expected a tree of arrays"),
        (lambda: jm.encode(PARAMS, None), "plan is None, expected a mapping"),
        (lambda: jm.encode(None, PLAN), "params is None, expected a tree"),
        (lambda: jm.budget(PARAMS, nbytes=-1), "nbytes is -1, expected a number of bytes of at le"),
        (lambda: jm.budget(PARAMS, nbytes=float("nan")), "nbytes is nan, expected a number of by"),
        (lambda: jm.shardings(PARAMS, jm.mesh(fsdp=8), {"w": "fsdp"}), "expected a mapping from"),
        (lambda: jm.save(3, PARAMS), "save: path is a int, expected a str or a PathLike"),
        (lambda: jm.load("f", functions=3), "load: functions is 3, expected a mapping"),
        (
            lambda: jm.to_bcoo(jm.Int(8).encode(X)),
            "to_bcoo: leaf is a IntArray, expected a CooArray",
        ),
        (lambda: jm.Plan(3), "a Plan takes a mapping from paths to codecs, got 3"),
    ],
)
def test_a_mistake_is_answered_with_the_value_and_what_was_expected(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [jm.nbytes, jm.decode, lambda tree: jm.encode(tree, {}), lambda tree: jm.choose(tree, {})],
)
def test_a_tree_of_more_levels_than_python_has_calls_is_refused_with_its_levels(call):
    tree = jnp.ones(2)
    for _ in range(1_500):
        tree = {"a": [tree]}
    with pytest.raises(ValueError, match=r" is a tree of 3,000 levels, expected fewer than Pyth"):
        call(tree)


def test_merge_refuses_trees_that_split_did_not_make():
    with pytest.raises(ValueError, match="merge takes the two trees that split made"):
        jm.merge({"a": 1}, {"b": 2})


def test_every_public_function_checks_what_its_annotations_say():
    spaces = (jm, jm.adapters, jm.interop, jm.layouts, jm.models, jm.optimizers, jm.train)
    functions = {f for space in spaces for f in vars(space).values() if inspect.isfunction(f)}
    ours = {f for f in functions if f.__module__.startswith("jaxmem.") and f.__name__[0] != "_"}
    asked = {f for f in ours if inspect.signature(f).parameters and f.__name__ != "takes"}
    unchecked = {f.__name__ for f in asked if not hasattr(f, "__wrapped__")}
    assert unchecked == {"is_encoded", "load", "merge", "save"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: jm.lift(FN, on_decode="never"), "on_decode is 'never', expected 'allow', 'error'"),
        (lambda: jm.save("f", PARAMS, compress="lz4"), "compress is 'lz4', expected a bool"),
        (
            lambda: jm.memory(FN, PARAMS, X, limit="16 GB"),
            "memory: limit is '16 GB', expected a nu",
        ),
        (
            lambda: jm.donations(FN, PARAMS, X, donate_argnums="0"),
            "donate_argnums is '0', expected",
        ),
        (lambda: jm.replicated("step"), "replicated: m is 'step', expected a Memory"),
        (lambda: jm.remat(FN, "full"), "remat: policy is 'full', expected a Remat"),
        (lambda: jm.tune(FN, PARAMS, PARAMS, X), "tune takes batches that are tuples"),
        (lambda: jm.adapters.attach(PARAMS, [1]), "attach: pairs is \\[1\\], expected a mapping"),
        (lambda: jm.mesh(fsdp="8"), "mesh: fsdp is '8', expected an int"),
        (lambda: jm.Plan({}, axes=3), "a Plan takes axes by path, as a mapping, got 3"),
        (lambda: jm.Plan({}, axes={"w": -2}), "w: the axes are -2, expected a tuple of ints"),
        (lambda: jm.Basis(4, order=X), "Basis takes 'sequence' or 'cycle' as its order, got a"),
        (lambda: jm.FitOptions(among=X), "FitOptions takes a collection of names as its among"),
        (lambda: jm.models.load(3), "load: source is 3, expected a string or a path"),
        (lambda: jm.models.load("llama-8b", dtype="int8"), "load: dtype is 'int8', expected a ty"),
        (lambda: jm.models.generate(3, [1]), "generate: model is 3, expected a Model"),
        (lambda: jm.layouts.fsdp(3, jm.mesh(fsdp=8)), "fsdp: config is 3, expected the config of"),
        (lambda: jm.interop.from_qwix(3), "from_qwix: array is 3, expected a QArray of qwix"),
        (lambda: jm.train.kl_divergence(3, X), r"target is 3, expected logits \(..., classes\)"),
        (lambda: jm.adapters.adapters(0, PARAMS, 4), "key is 0, expected a key of jax.random"),
        (
            lambda: jm.dot_general(X, X, 3),
            r"dims is 3, expected \(\(axes of x, axes of w\)",
        ),
        (
            lambda: jm.dot_general(X, X, (((1,), (0,)), ((), ()))),
            r"dims is .* of x \(2, 32\) and w \(2, 32\), expected axes of equal lengths",
        ),
        (lambda: jm.Recipe("llama-8b", "no such", "serve", 1, 8), "unknown device 'no such'"),
        (lambda: jm.pipelined(FN, jm.mesh(stage=4), micro=0), "micro is 0, expected an int of at"),
        (lambda: jm.train.accumulate(FN, 0), "accumulate: count is 0, expected an int of at le"),
        (lambda: jm.train.polynomial(1, 5, 2), "begin is 5 and end 2, expected 0 <= begin <= end"),
        (
            lambda: jm.train.next_token_loss(X[None], PARAMS["w"][:5], X.astype(int)),
            r"head has shape \(5, 8\), expected 32 on its axis 0",
        ),
        (lambda: jm.errors(PARAMS, [3]), "w: 3 is no codec, expected one such as Int"),
        (lambda: jm.Sum((jm.Int(4), "int8")), "Sum takes a tuple of codecs, such as"),
        (lambda: jm.Smallest(jm.Int(4)), "Smallest takes a tuple of codecs, such as"),
        (lambda: jm.Cast(None), "Cast takes a float type, such as 'bfloat16', got None"),
        (lambda: jm.Blocks(block=32), "Blocks takes a tuple of two ints as its block, got 32"),
        (lambda: jm.Int(4, group="32"), "Int takes an int or None as its group, got '32'"),
        (lambda: jm.Remat("named", names="attn_out"), "Remat takes a collection of names"),
    ],
)
def test_an_argument_of_another_kind_is_answered_with_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("tree", [{}, [], {"a": 3}, X, np.ones(2), jm.Int(8).encode(X.T)])
def test_what_holds_arrays_or_could_is_a_tree(tree):
    assert TREE.accepts(tree)


@pytest.mark.parametrize(
    "make, field",
    [
        (jm.LowRank, "rank"),
        (jm.Bitmask, "density"),
        (jm.Csr, "density"),
        (jm.Coo, "density"),
        (jm.Blocks, "density"),
        (lambda wrong: jm.Inputs(0.5, size=wrong), "size"),
        (lambda wrong: jm.NM(wrong, 4), "n"),
        (lambda wrong: jm.Int(wrong, group=32), "bits"),
        (lambda wrong: jm.FitOptions(tune_steps=wrong), "tune_steps"),
        (lambda wrong: jm.SparseGPT(jm.NM(2, 4), damping=wrong), "damping"),
        (jm.Shared, "groups"),
        (jm.Basis, "rank"),
        (lambda wrong: jm.Smooth(jm.Int(4), strength=wrong), "strength"),
    ],
)
def test_a_codec_says_which_number_it_takes(make, field):
    for wrong in ("4", None, (2,)):
        with pytest.raises(TypeError, match=f"takes an? (int|number) as its {field}, got "):
            make(wrong)
