"""xs @ W for all steps of a loop at once, instead of x @ W in each step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jax import lax

from .loop_carries import scan_arity

MOST_BYTES = 2**25  # of the products of all steps together


def scan_products_first(
    run_equations: Callable, const: list, rest: list, *, jaxpr: Any, **params: Any
) -> list:
    """The outputs of a scan over arrays: its last carry, and its stacked results.

    A product of a step's slices that does not depend on the carry, such as a recurrent cell's
    product of its input, is computed for all steps before the loop: its weight is read once. Where
    these products together take more than 32 MiB, each step computes its own.

    Args:
        run_equations: runs operations on {variable: value}, and adds their results to the values.
        const: the arrays that every step reads.
        rest: the first carry, and then the stacks whose slices the steps read.
        jaxpr: the closed jaxpr of a step, a function of const, carry and slices.
        params: the other parameters of the scan.
    """
    n_carry = scan_arity(params)[1]
    body, carry, xs = jaxpr.jaxpr, rest[:n_carry], rest[n_carry:]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    products = _independent_products(body, len(const), n_carry)
    nbytes = sum(v.aval.size * v.aval.dtype.itemsize for v in products) * options["length"]
    products = products if nbytes <= MOST_BYTES else []
    computed = set(products)
    before = _needed(body, products)
    after = [eqn for eqn in body.eqns if computed.isdisjoint(eqn.outvars)]

    def run(eqns, state, slices, known, results):
        inputs = (*jaxpr.consts, *const, *state, *slices, *known)
        values = dict(zip((*body.constvars, *body.invars, *products), inputs))
        run_equations(eqns, values)
        return [v.val if isinstance(v, jex.Literal) else values[v] for v in results]

    def step(state, slices):
        outs = run(after, state, *slices, body.outvars)
        return outs[:n_carry], outs[n_carry:]

    products_of = lambda slices: run(before, carry, slices, (), products)
    known = jax.vmap(products_of)(xs) if products else []
    end, ys = lax.scan(step, carry, (xs, known), **options)
    return [*end, *ys]


def _independent_products(body: Any, n_const: int, n_carry: int) -> list:
    """The variables of the products that depend on the scanned slices, and not on the carry."""
    names = ["const"] * n_const + ["carry"] * n_carry
    sources = {v: {"slices"} for v in body.invars} | {v: {n} for v, n in zip(body.invars, names)}
    products = []
    for eqn in body.eqns:
        operands = [sources.get(v, set()) for v in eqn.invars if not isinstance(v, jex.Literal)]
        union = set().union(*operands, {"carry"} if eqn.effects else ())
        sources |= {v: union for v in eqn.outvars}
        if eqn.primitive.name == "dot_general" and union == {"const", "slices"}:
            products += eqn.outvars
    return products


def _needed(body: Any, results: list) -> list:
    """The operations that compute `results`, in order."""
    wanted, operations = set(results), []
    for eqn in reversed(body.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            operations.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return operations[::-1]
