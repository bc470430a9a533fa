"""divided: the operations of a jaxpr in two parts; a scan is divided into two scans."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax import lax

from .known_steps import Stacked, Step, equation_step, is_literal, without_cheap_results
from .loop_carries import scan_arity
from .traced_function import inlined


def divided(eqns: Iterable[Any], known: set) -> tuple[list[Step], list[Step]]:
    """(steps on known values, steps on others); `known` grows by what the first ones write."""
    early, late = [], []
    for eqn in eqns:
        flags = [is_literal(v) or v in known for v in eqn.invars]
        if not eqn.effects and all(flags):
            first, rest = equation_step(eqn), None
        elif eqn.primitive.name == "scan" and not eqn.effects and any(flags):
            first, rest = _split_scan(eqn, flags)
        else:
            first, rest = None, equation_step(eqn)
        if first is not None:
            early.append(first)
            known |= {*first.writes}
        if rest is not None:
            late.append(rest)
    return early, late


def _split_scan(eqn: Any, flags: list[bool]) -> tuple[Step | None, Step]:
    """(the scan of what the known operands determine, the scan of the rest, which reads it).

    The first is None where it would compute nothing. A carry is known if its start is, and if each
    layer computes it from known values. `flags` says which operands are known.
    """
    # 1. Which variables of the body are known; a carry is until a layer says otherwise.
    body = inlined(eqn.params["jaxpr"])
    inner, (n_const, n_carry) = body.jaxpr, scan_arity(eqn.params)
    carries = slice(n_const, n_const + n_carry)
    flags = list(flags)
    while True:
        known = {v for v, flag in zip(inner.invars, flags) if flag} | {*inner.constvars}
        early, late = divided(inner.eqns, known)
        outs = [is_literal(v) or v in known for v in inner.outvars]
        stays = [a and b for a, b in zip(flags[carries], outs)]
        if stays == flags[carries]:
            break
        flags[carries] = stays
    outs[:n_carry] = stays  # a carry that is known after a layer, but not before, is not

    # 2. What the rest reads of the known values, apart from operands of the scan.
    results = {v for v, flag in zip(inner.outvars, outs) if not flag and not is_literal(v)}
    read = {v for step in late for v in step.reads} | results
    _, again, kept = without_cheap_results(early, read)
    late = [*again, *late]
    if not kept and not any(outs[n_carry:]):
        return None, equation_step(eqn)
    read = {v for step in late for v in step.reads} | results
    kept += [v for v, flag in zip(inner.invars[carries], stays) if flag and v in read]

    # 3. Each part is a scan over the operands that it reads.
    length = eqn.params["length"]
    shape = lambda v: jax.ShapeDtypeStruct((length, *v.aval.shape), v.aval.dtype)
    stacks = [Stacked(shape(v)) for v in kept]
    is_read = [v in read for v in inner.invars]
    is_carry = [n_const <= i < n_const + n_carry for i in range(len(flags))]
    later = [not f or (r and not c) for f, r, c in zip(flags, is_read, is_carry)]
    first = _ScanPart(eqn, body, flags, outs, early, (), (), kept, stacks)
    rest = _ScanPart(eqn, body, later, [not o for o in outs], late, kept, stacks, (), ())
    return first.step(), rest.step()


class _ScanPart:
    """A scan over some operands and results of another one.

    Args:
        eqn: the whole scan.
        body: its closed jaxpr.
        operands: which of its operands this part takes.
        results: which of its results this part gives.
        steps: what each layer runs.
        read: variables of the body that each layer takes of `read_stacks`.
        written: variables of the body that each layer gives to `written_stacks`.
    """

    def __init__(
        self,
        eqn: Any,
        body: Any,
        operands: list[bool],
        results: list[bool],
        steps: list[Step],
        read: Sequence[Any],
        read_stacks: Sequence[Stacked],
        written: Sequence[Any],
        written_stacks: Sequence[Stacked],
    ) -> None:
        self.eqn, self.body, self.steps = eqn, body, steps
        n_const, n_carry = scan_arity(eqn.params)
        inner = body.jaxpr
        kinds = [0] * n_const + [1] * n_carry + [2] * (len(operands) - n_const - n_carry)
        pairs = [
            (k, *p) for k, *p, taken in zip(kinds, inner.invars, eqn.invars, operands) if taken
        ]
        of_kind = lambda kind: [(v, outer) for k, v, outer in pairs if k == kind]
        self.const, self.carry, self.xs = map(of_kind, range(3))
        self.xs += zip(read, read_stacks)
        outs = list(zip(inner.outvars, eqn.outvars, results))
        self.ends = [pair for *pair, given in outs[:n_carry] if given]
        self.ys = [pair for *pair, given in outs[n_carry:] if given]
        self.ys += zip(written, written_stacks)

    def step(self) -> Step:
        """The scan as a step."""
        operands = itertools.chain(self.const, self.carry, self.xs)
        reads = tuple(dict.fromkeys(outer for _, outer in operands if not is_literal(outer)))
        writes = tuple(outer for _, outer in (*self.ends, *self.ys))
        return Step(reads, writes, self._run, count=sum(step.count for step in self.steps))

    def _run(self, values: dict) -> None:
        outer = lambda pairs: [v.val if is_literal(v) else values[v] for _, v in pairs]
        fixed = dict(zip(self.body.jaxpr.constvars, self.body.consts))
        fixed |= dict(zip((v for v, _ in self.const), outer(self.const)))

        def layer(state, slices):
            local = dict(fixed)
            local |= {v: x for (v, _), x in zip((*self.carry, *self.xs), (*state, *slices))}
            for step in self.steps:
                step.run(local)
            inner = lambda pairs: [v.val if is_literal(v) else local[v] for v, _ in pairs]
            return inner(self.ends), inner(self.ys)

        params = self.eqn.params
        options = {"reverse": params["reverse"], "unroll": params["unroll"]}
        xs = outer(self.xs)
        ends, ys = lax.scan(layer, outer(self.carry), xs, params["length"], **options)
        writes = (v for _, v in (*self.ends, *self.ys))
        values.update(zip(writes, (*ends, *ys)))
