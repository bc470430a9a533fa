"""Bytes moved and flops done by a compiled program: each operation's own × how often it runs.

`cost_analysis` counts a loop's body once and mixes the chip's memories, so this reads the
program's text instead: what lies in main memory, only the part of it that a slice takes, times the
trips of the loops around it.
"""

import json
import math
import re

from .hlo import Op, Program, dims, shapes, width

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "custom-call-done"}
_SAME = {"bitcast", "copy", "reshape", "transpose", "convert"}  # a slice of it is a slice of that
_SLICES = {"dynamic-slice", "slice", "gather"}


def hbm_bytes(program: Program) -> int:
    """Bytes read from and written to main memory in one run.

    A kernel of Pallas counts what it says it moves, or its operands and results once.
    """
    return sum(times * _moved(program, c, op) for c, op, times in program.walk())


def heaviest(program: Program, count: int = 10) -> list[tuple[int, str, str]]:
    """(bytes in one run, kind, source) of the operations that move most."""
    found = [(t * _moved(program, c, op), op.kind, source(op)) for c, op, t in program.walk()]
    return sorted(found, reverse=True)[:count]


def collective_bytes(program: Program) -> dict[str, int]:
    """{kind: bytes of results that one device receives} of what chips say to each other."""
    found: dict[str, int] = {}
    for _, op, times in program.walk():
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            sizes = [size for size, _ in shapes(op.type)]
            half = sizes[len(sizes) // 2 :] if op.kind.endswith("-start") else sizes
            found[kind] = found.get(kind, 0) + times * max(half, default=0)
    return found


def flops(program: Program) -> int:
    """2 · multiplications of every product in one run, of a program not yet optimized."""
    total = 0
    for c, op, times in program.walk():
        if op.kind == "dot":
            left = dims(program.ops[c, op.operands[0]].type)[0][1]
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
            summed = [left[int(a)] for a in axes[1].split(",")] if axes and axes[1] else []
            total += times * 2 * op.elements * math.prod(summed)
        elif op.kind == "convolution":
            kernel = dims(program.ops[c, op.operands[1]].type)[0][1]
            labels = re.search(r"dim_labels=\w+_(\w+)->", op.rest)[1]
            total += times * 2 * op.elements * math.prod(kernel) // kernel[labels.index("o")]
        elif op.kind == "custom-call":
            total += times * _stated(op).get("flops", 0)
    return total


def reads_all(program: Program, computation: str, op: Op) -> bool:
    """Whether anything reads all of a result, and not only slices of it."""
    return _touched(program, computation, op.name, [(computation, op)]) >= op.elements


def source(op: Op) -> str:
    """The operation's path in the traced function."""
    name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', op.rest)
    return name[1].replace("\\'", "'") if name else op.name


def _moved(program: Program, computation: str, op: Op) -> int:
    """Bytes of main memory that the operation reads and writes."""
    kind, stated = op.kind, _stated(op)
    done = kind in FREE or kind.endswith("-done")
    if done or kind.removesuffix("-start") in COLLECTIVES:
        return 0
    given = [program.ops.get((computation, name)) for name in op.operands]
    if "bytes_accessed" in stated:  # of what already lies in fast memory too
        sizes = [part for x in (*given, op) if x is not None for part in shapes(x.type)]
        total = max(0, stated["bytes_accessed"] - sum(size for size, space in sizes if space))
    elif kind.endswith("-start"):  # a copy of its result in another memory, or of a slice
        total = _parts(op) * (2 if {space for _, space in shapes(op.type)} == {0} else 1)
    elif kind == "fusion":
        total = _read_by_fusion(program, computation, op, given) + _written(program, op)
    elif kind in _SLICES:
        total = (op.nbytes if _in_hbm(given[0]) else 0) + _hbm(op)
    elif kind == "dynamic-update-slice":
        total = _hbm(given[1]) + (given[1].nbytes if _in_hbm(op) else 0)
    else:
        total = sum(_hbm(x) for x in given if x is not None) + _hbm(op)
    return total


def _read_by_fusion(program: Program, computation: str, op: Op, given: list) -> int:
    inner, total = op.calls[0], 0
    params = {int(p.operands[0]): p for p in program.computations[inner] if _is_param(p)}
    for i, x in enumerate(given):
        if x is not None and i in params and _in_hbm(x):
            read = _touched(program, inner, params[i].name, [(computation, op)])
            total += min(read, x.elements) * width(dims(x.type)[0][0]) // 8
    return total


def _touched(program: Program, computation: str, name: str, outer: list) -> int:
    """Numbers of a fusion's parameter that it reads: all, or those that slices take."""
    total = 0
    whole = program.ops[computation, name].elements
    for user in program.users.get((computation, name), []):
        first = user.operands[0] == name
        if user.kind in _SLICES and first:
            total += user.elements
        elif user.kind == "dynamic-update-slice" and first and name not in user.operands[1:]:
            continue
        elif user.kind in _SAME:
            total += _touched(program, computation, user.name, outer)
        elif user.kind == "fusion":
            inner = user.calls[0]
            at = user.operands.index(name)
            param = next(
                p for p in program.computations[inner] if _is_param(p) and p.operands == (str(at),)
            )
            total += _touched(program, inner, param.name, [*outer, (computation, user)])
        else:
            return whole
    if program.ops[computation, name].is_root and len(outer) > 1:  # it leaves an inner fusion
        *rest, (around, fusion) = outer
        total += _touched(program, around, fusion.name, rest)
    elif program.ops[computation, name].is_root:
        return whole
    return total


def _written(program: Program, op: Op) -> int:
    """Bytes of main memory that a fusion writes: of an update in place, the update."""
    computation = op.calls[0]
    root = program.root(computation)
    names = root.operands if root.kind == "tuple" else (root.name,)
    sizes, total = shapes(op.type), 0
    for name, (size, space) in zip(names, sizes):
        value, where = program.ops[computation, name], computation
        while value.kind in _SAME or value.kind == "fusion":
            if value.kind == "fusion":
                where = value.calls[0]
                value = program.root(where)
                continue
            value = program.ops[where, value.operands[0]]
        update = value.kind == "dynamic-update-slice"
        part = min(size, program.ops[where, value.operands[1]].nbytes) if update else size
        total += part if not space else 0
    return total


def _parts(op: Op) -> int:
    """Bytes of the result of a start, whose type is (operand, result, ...)."""
    sizes = [size for size, _ in shapes(op.type)]
    return min(sizes[:2]) if len(sizes) > 1 else sum(sizes)


def _stated(op: Op) -> dict[str, int]:
    """What a kernel says of itself."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', op.rest)
    return {k: int(v) for k, v in json.loads(found[1]).items()} if found else {}


def _is_param(op: Op) -> bool:
    return op.kind == "parameter"


def _in_hbm(op: Op) -> bool:
    return any(space == 0 for _, space in shapes(op.type))


def _hbm(op: Op) -> int:
    return sum(size for size, space in shapes(op.type) if space == 0)
