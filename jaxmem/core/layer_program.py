"""LayerProgram: a loss cut into pieces, each a scan over layers or what stands between two of them.

A piece can be run by itself, so that a training step decides what it keeps and when it updates.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import partial_eval

from .loop_carries import filled, moving, passed_through, scan_arity
from .replay import JaxprReplay
from .traced_function import Traced

_REPLAY = JaxprReplay("allow")
Values = dict[Any, Any]  # {variable of the jaxpr: its array}


@dataclasses.dataclass(frozen=True, eq=False)
class Straight:
    """Operations between two scans over layers."""

    eqns: tuple
    reads: tuple  # variables that come from elsewhere: params, the batch, or earlier pieces
    writes: tuple  # variables that a later piece reads, or the loss

    def run(self, values: Values) -> Values:
        """The values that the piece writes."""
        values = dict(values)
        _REPLAY.run_equations(self.eqns, values)
        return {v: values[v] for v in self.writes}


@dataclasses.dataclass(frozen=True, eq=False)
class LayerScan:
    """A scan over layers, some of whose stacks are params."""

    eqn: Any
    stacks: dict[int, tuple[int, tuple]]  # {place among the slices: (param, dtypes it is cast to)}
    reads: tuple  # variables that come from elsewhere, without `stacks`
    writes: tuple

    @property
    def length(self) -> int:
        """The number of layers."""
        return self.eqn.params["length"]

    @property
    def reverse(self) -> bool:
        """Whether the last layer runs first."""
        return self.eqn.params["reverse"]

    @property
    def parts(self) -> tuple[list, list, list]:
        """(constants, carry, slices) among the operands of the scan."""
        n_const, n_carry = scan_arity(self.eqn.params)
        operands = list(self.eqn.invars)
        return (
            operands[:n_const],
            operands[n_const : n_const + n_carry],
            operands[n_const + n_carry :],
        )

    @property
    def fixed(self) -> list[bool]:
        """For each carry, whether each layer returns it unchanged."""
        const, carry, _ = self.parts
        return passed_through(self.eqn.params["jaxpr"].jaxpr, len(const), carry)

    @property
    def state(self) -> list:
        """The variables, or literals, of the carry that layers change, before the first layer."""
        return moving(self.parts[1], self.fixed)

    @property
    def params(self) -> set[int]:
        """The params whose layers are scanned over."""
        return {param for param, _ in self.stacks.values()}

    @property
    def unchanged(self) -> dict:
        """{result: the carry that it equals}, for the carries that no layer changes."""
        carry = self.parts[1]
        return {out: v for out, v, f in zip(self.eqn.outvars, carry, self.fixed) if f}

    @property
    def whole_reads(self) -> list:
        """The variables that each layer reads whole: constants, and carries that stay."""
        const, carry, _ = self.parts
        return _variables((*const, *(v for v, f in zip(carry, self.fixed) if f)))

    @property
    def results(self) -> tuple[list, list]:
        """(variables of the carry that layers change, after the last one; stacked results)."""
        n_carry = len(self.parts[1])
        return moving(self.eqn.outvars[:n_carry], self.fixed), list(self.eqn.outvars[n_carry:])

    def layer(self, values: Values, state: list, slices: list) -> tuple[list, list]:
        """(carry, results) of one layer; `values` has the constants and the carry that is fixed."""
        const, carry, _ = self.parts
        body, fixed = self.eqn.params["jaxpr"], self.fixed
        kept = [read(v, values) if f else None for v, f in zip(carry, fixed)]
        carried = filled(kept, fixed, state)
        inputs = (*(read(v, values) for v in const), *carried, *slices)
        outs = _REPLAY.run(body.jaxpr, body.consts, *inputs)
        return moving(outs[: len(carry)], fixed), outs[len(carry) :]

    @property
    def loose_slices(self) -> dict[int, Any]:
        """{place among the slices: variable} of the stacks that are no params."""
        return {place: v for place, v in enumerate(self.parts[2]) if place not in self.stacks}

    def loose(self, values: Values) -> dict[int, Any]:
        """{place: stack} of the stacks that are no params."""
        return {place: read(v, values) for place, v in self.loose_slices.items()}

    def slices(self, params: dict[int, Any], others: dict[int, Any]) -> list:
        """What a layer takes, given {place: its slice} of params as stored and of other stacks."""
        as_scanned = lambda layer, dtypes: functools.reduce(lambda x, t: x.astype(t), dtypes, layer)
        both = {p: as_scanned(layer, self.stacks[p][1]) for p, layer in params.items()} | others
        return [both[place] for place in sorted(both)]


@dataclasses.dataclass(frozen=True, eq=False)
class LayerProgram:
    """A loss, a function (params, batch) -> scalar, cut at its scans over layers.

    Example:
        >>> def loss(params, x):
        ...     x, _ = jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, params["layers"])
        ...     return (x * params["gain"]).sum()
        >>> params = {"gain": jnp.ones(()), "layers": jnp.ones((3, 4, 4))}
        >>> program = LayerProgram.of(loss, params, jnp.ones((2, 4)))
        >>> [type(piece).__name__ for piece in program.pieces], program.stacked
        (['Straight', 'LayerScan', 'Straight'], {1: 1})
    """

    params: tuple  # a variable for each leaf of the params
    batch: tuple  # and for each leaf of the batch
    consts: Values
    pieces: tuple[Straight | LayerScan, ...]  # the last one gives the loss
    result: Any  # the variable of the loss
    active: frozenset  # the variables of floats that depend on params

    @classmethod
    def of(cls, loss: Callable, params: Any, batch: Any) -> "LayerProgram":
        """The program of `loss` on arrays, or shapes, of these params and this batch.

        Raises:
            ValueError: the loss is no scalar; or it has no scan that takes slices of params.
        """
        closed = Traced.of(loss, params, batch).inlined
        if [v.aval.shape for v in closed.jaxpr.outvars] != [()]:
            shapes = [v.aval.shape for v in closed.jaxpr.outvars]
            raise ValueError(f"the loss returns arrays of shapes {shapes}, expected one scalar")
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
        n_params = len(jax.tree.leaves(params))
        variables = tuple(jaxpr.invars[:n_params])
        sources = _sources(jaxpr.eqns, variables)
        pieces, run = [], []
        for eqn in jaxpr.eqns:
            stacks = _stacks(eqn, sources)
            if not stacks:
                run.append(eqn)
                continue
            pieces += [Straight(tuple(run), (), ()), LayerScan(eqn, stacks, (), ())]
            run = []
        if not pieces:
            raise ValueError(
                f"found no scan over layers in {getattr(loss, '__name__', loss)}: expected one "
                "that takes slices of params, as lax.scan, nn.scan and nnx.scan do; stack the "
                "layers that a Python loop runs, and scan over them"
            )
        pieces.append(Straight(tuple(run), (), ()))
        pieces = _linked(pieces, jaxpr)
        return cls(
            variables,
            tuple(jaxpr.invars[n_params:]),
            dict(zip(jaxpr.constvars, closed.consts)),
            pieces,
            jaxpr.outvars[0],
            _active(jaxpr.eqns, variables),
        )

    def is_active(self, v: Any) -> bool:
        """Whether an operand is a float that depends on params."""
        return not isinstance(v, jex.Literal) and v in self.active

    @property
    def stacked(self) -> dict[int, int]:
        """{param: the piece that takes a slice of it for each layer}."""
        return {
            param: i
            for i, piece in enumerate(self.pieces)
            if isinstance(piece, LayerScan)
            for param, _ in piece.stacks.values()
        }

    @property
    def first_reader(self) -> dict[int, int]:
        """{param that a piece reads whole: the first such piece}."""
        index = {v: i for i, v in enumerate(self.params)}
        first: dict[int, int] = {}
        for i, piece in enumerate(self.pieces):
            for v in piece.reads:
                if v in index:
                    first.setdefault(index[v], i)
        return first

    @property
    def crossing(self) -> tuple:
        """The variables that one piece computes and a later one reads."""
        written = {v: None for piece in self.pieces[:-1] for v in piece.writes}
        return tuple(written)


def read(v: Any, values: Values) -> Any:
    """The value of an operand of a jaxpr."""
    return v.val if isinstance(v, jex.Literal) else values[v]


def _variables(operands: Iterable[Any]) -> list:
    return [v for v in operands if not isinstance(v, jex.Literal)]


def _sources(eqns: Sequence[Any], params: tuple) -> dict:
    """{variable: (the param that it is, the dtypes it is cast to in turn)}."""
    sources = {v: (i, ()) for i, v in enumerate(params)}
    for eqn in eqns:
        if eqn.primitive.name != "convert_element_type" or isinstance(eqn.invars[0], jex.Literal):
            continue
        if eqn.invars[0] in sources:
            param, dtypes = sources[eqn.invars[0]]
            sources[eqn.outvars[0]] = param, (*dtypes, eqn.outvars[0].aval.dtype)
    return sources


def _stacks(eqn: Any, sources: dict) -> dict:
    """The params whose layers an operation scans over; see `LayerScan`."""
    if eqn.primitive.name != "scan":
        return {}
    slices = eqn.invars[sum(scan_arity(eqn.params)) :]
    is_param = lambda v: not isinstance(v, jex.Literal) and v in sources and is_float(v)
    return {place: sources[v] for place, v in enumerate(slices) if is_param(v)}


def _linked(pieces: list, jaxpr: Any) -> tuple:
    """The pieces with what each reads and writes, and without operations that nothing needs."""
    needed, linked = set(_variables(jaxpr.outvars)), []
    for piece in reversed(pieces):
        if isinstance(piece, LayerScan):
            const, carry, slices = piece.parts
            loose = [v for place, v in enumerate(slices) if place not in piece.stacks]
            reads, written = _variables((*const, *carry, *loose)), list(piece.eqn.outvars)
            changes = {}
        else:
            eqns = []
            wanted = set(needed)
            for eqn in reversed(piece.eqns):
                if not wanted.isdisjoint(eqn.outvars):
                    eqns.append(eqn)
                    wanted |= set(_variables(eqn.invars))
            eqns = tuple(reversed(eqns))
            written = [v for eqn in eqns for v in eqn.outvars]
            inside = set(written)
            read_all = [v for eqn in eqns for v in _variables(eqn.invars)]
            reads = [v for v in read_all if v not in inside]
            if piece is pieces[-1]:  # the loss itself may come from a scan
                reads += [v for v in _variables(jaxpr.outvars) if v not in inside]
            changes = {"eqns": eqns}
        writes = tuple(v for v in dict.fromkeys(written) if v in needed)
        reads = tuple(v for v in dict.fromkeys(reads) if v not in set(jaxpr.constvars))
        needed |= set(reads)
        linked.append(dataclasses.replace(piece, reads=reads, writes=writes, **changes))
    return tuple(reversed(linked))


def _active(eqns: Sequence[Any], params: tuple) -> frozenset:
    """The variables of floats that depend on params."""
    active = {v for v in params if is_float(v)}
    for eqn in eqns:
        if not active.isdisjoint(_variables(eqn.invars)):
            active |= {v for v in eqn.outvars if is_float(v)}
    return frozenset(active)


def is_float(v: Any) -> bool:
    """Whether a variable or an array has a derivative."""
    return jnp.issubdtype(getattr(v, "aval", v).dtype, jnp.inexact)
