"""hbm_bytes, flops: Σ over a program's operations of (bytes or flops · how often it runs).

XLA's own `cost_analysis` counts a loop's body once, and mixes main memory with on-chip memory. So
this module reads the program's text: it counts arrays in main memory (of a sliced array, only the
slice), times the trips of the loops around each operation.
"""

import json
import math
import re

from .hlo import Op, Program, dims, shapes, width

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "custom-call-done"}
# The result of these has the operand's numbers: a slice of the result reads a slice of the operand.
_SAME_NUMBERS = {"bitcast", "copy", "reshape", "transpose", "convert"}
_SLICES = {"dynamic-slice", "slice", "gather"}


def hbm_bytes(program: Program) -> int:
    """Bytes read from and written to main memory in one run.

    A Pallas kernel counts the bytes of its cost estimate, or its operands and results once.
    """
    return sum(times * _moved(program, c, op) for c, op, times in program.walk())


def heaviest(program: Program, count: int = 10) -> list[tuple[int, str, str]]:
    """(bytes in one run, kind, source) of the `count` operations that move most bytes."""
    rows = [(t * _moved(program, c, op), op.kind, source(op)) for c, op, t in program.walk()]
    return sorted(rows, reverse=True)[:count]


def collective_bytes(program: Program) -> dict[str, int]:
    """{kind of collective: bytes of results that one device receives in one run}."""
    received: dict[str, int] = {}
    for _, op, times in program.walk():
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            sizes = [size for size, _ in shapes(op.type)]
            # The type of a "-start" lists the operands first, and then the results.
            results = sizes[len(sizes) // 2 :] if op.kind.endswith("-start") else sizes
            received[kind] = received.get(kind, 0) + times * max(results, default=0)
    return received


def flops(program: Program) -> int:
    """2 · multiplications of all products in one run; `program` is the text before compilation."""
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
    """Whether the operations that use a result together read all of it, and not only slices."""
    return _touched(program, computation, op.name, [(computation, op)]) >= op.elements


def source(op: Op) -> str:
    """The operation's path in the traced function."""
    name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', op.rest)
    return name[1].replace("\\'", "'") if name else op.name


def _moved(program: Program, computation: str, op: Op) -> int:
    """Bytes of main memory that the operation reads and writes each time it runs."""
    kind, stated = op.kind, _stated(op)
    done = kind in FREE or kind.endswith("-done")
    if done or kind.removesuffix("-start") in COLLECTIVES:
        return 0
    operands = [program.ops.get((computation, name)) for name in op.operands]
    if "bytes_accessed" in stated:  # includes arrays that already lie in on-chip memory
        sizes = [part for x in (*operands, op) if x is not None for part in shapes(x.type)]
        total = max(0, stated["bytes_accessed"] - sum(size for size, space in sizes if space))
    elif kind.endswith("-start"):
        # A copy of an array or a slice: read and written where both ends are in main memory.
        total = _parts(op) * (2 if {space for _, space in shapes(op.type)} == {0} else 1)
    elif kind == "fusion":
        total = _read_by_fusion(program, computation, op, operands) + _written(program, op)
    elif kind in _SLICES:
        total = (op.nbytes if _in_hbm(operands[0]) else 0) + _hbm(op)
    elif kind == "dynamic-update-slice":
        total = _hbm(operands[1]) + (operands[1].nbytes if _in_hbm(op) else 0)
    else:
        total = sum(_hbm(x) for x in operands if x is not None) + _hbm(op)
    return total


def _read_by_fusion(program: Program, computation: str, op: Op, operands: list[Op | None]) -> int:
    """Bytes of main memory that a fusion reads of its operands."""
    inner, total = op.calls[0], 0
    params = {int(p.operands[0]): p for p in program.computations[inner] if _is_param(p)}
    for i, x in enumerate(operands):
        if x is not None and i in params and _in_hbm(x):
            count = _touched(program, inner, params[i].name, [(computation, op)])
            total += min(count, x.elements) * width(dims(x.type)[0][0]) // 8
    return total


def _touched(program: Program, computation: str, name: str, outer: list[tuple[str, Op]]) -> int:
    """Elements of the value `name` that its users read: all, or the elements of the slices taken.

    `outer` are the fusions, with their computations, that contain `computation`, outermost first.
    """
    total = 0
    whole = program.ops[computation, name].elements
    for user in program.users.get((computation, name), []):
        first = user.operands[0] == name
        if user.kind in _SLICES and first:
            total += user.elements
        elif user.kind == "dynamic-update-slice" and first and name not in user.operands[1:]:
            continue  # an update in place reads nothing of the array
        elif user.kind in _SAME_NUMBERS:
            total += _touched(program, computation, user.name, outer)
        elif user.kind == "fusion":
            inner = user.calls[0]
            number = (str(user.operands.index(name)),)
            param = next(
                p for p in program.computations[inner] if _is_param(p) and p.operands == number
            )
            total += _touched(program, inner, param.name, [*outer, (computation, user)])
        else:
            return whole
    if program.ops[computation, name].is_root and len(outer) > 1:
        # This is the result of an inner fusion: follow the fusion's users.
        *rest, (around, fusion) = outer
        total += _touched(program, around, fusion.name, rest)
    elif program.ops[computation, name].is_root:
        return whole
    return total


def _written(program: Program, op: Op) -> int:
    """Bytes of main memory that a fusion writes; an update in place writes only the update."""
    computation = op.calls[0]
    root = program.root(computation)
    names = root.operands if root.kind == "tuple" else (root.name,)
    sizes, total = shapes(op.type), 0
    for name, (size, space) in zip(names, sizes):
        value, inside = program.ops[computation, name], computation
        while value.kind in _SAME_NUMBERS or value.kind == "fusion":
            if value.kind == "fusion":
                inside = value.calls[0]
                value = program.root(inside)
                continue
            value = program.ops[inside, value.operands[0]]
        update = value.kind == "dynamic-update-slice"
        part = min(size, program.ops[inside, value.operands[1]].nbytes) if update else size
        total += part if not space else 0
    return total


def _parts(op: Op) -> int:
    """Bytes of the result of a "-start" operation, whose type is (operand, result, ...)."""
    sizes = [size for size, _ in shapes(op.type)]
    return min(sizes[:2]) if len(sizes) > 1 else sum(sizes)


def _stated(op: Op) -> dict[str, int]:
    """The cost estimate that a Pallas kernel states: flops, bytes_accessed and the like."""
    match = re.search(r'"cost_estimate":(\{[^}]*\})', op.rest)
    return {k: int(v) for k, v in json.loads(match[1]).items()} if match else {}


def _is_param(op: Op) -> bool:
    return op.kind == "parameter"


def _in_hbm(op: Op) -> bool:
    """Whether any array of the result lies in main memory."""
    return any(space == 0 for _, space in shapes(op.type))


def _hbm(op: Op) -> int:
    """Bytes of the result in main memory."""
    return sum(size for size, space in shapes(op.type) if space == 0)
