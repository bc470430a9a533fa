"""read: the text of a compiled program, as computations that are lists of operations."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-<>]+) (?:\(.*\) -> .* )?\{$")
_NAME = re.compile(r"([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_ESTIMATE = re.compile(r'"cost_estimate": ?\{[^}]*\}')  # may span several lines before XLA's passes
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-<>]+)"
)


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation: its name, kind, result type, operands, and the rest of its line."""

    name: str
    kind: str
    type: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the result, in whichever memory."""
        return sum(size for size, _ in shapes(self.type))

    @property
    def elements(self) -> int:
        """Elements of the result."""
        return sum(math.prod(sides) for _, sides in dims(self.type))

    @property
    def calls(self) -> list[str]:
        """Names of the computations that the operation runs, except a loop's condition."""
        lists = (m[1].strip("{}").split(",") for m in _CALLED.finditer(self.rest))
        return [name.strip().lstrip("%") for names in lists for name in names]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and the name of the entry computation."""

    computations: dict[str, list[Op]]
    entry: str

    @functools.cached_property
    def ops(self) -> dict[tuple[str, str], Op]:
        """{(computation, operation's name): operation}."""
        return {(c, op.name): op for c, ops in self.computations.items() for op in ops}

    @functools.cached_property
    def users(self) -> dict[tuple[str, str], list[Op]]:
        """{(computation, operation's name): the operations that read its result}."""
        users: dict[tuple[str, str], list[Op]] = {}
        for c, ops in self.computations.items():
            for op in ops:
                for name in dict.fromkeys(op.operands):
                    users.setdefault((c, name), []).append(op)
        return users

    def root(self, computation: str) -> Op:
        """The operation whose result is the computation's result."""
        return next(op for op in self.computations[computation] if op.is_root)

    def trips(self, loop: Op) -> int:
        """How often a `while` runs its body.

        The count is the compiler's note, or else the largest constant in the loop's condition.
        """
        if known := re.search(r"known_trip_count[^0-9]{1,8}n[^0-9]{1,4}(\d+)", loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-<>]+)", loop.rest)[1]
        inside = [condition, *(c for op in self.computations[condition] for c in op.calls)]
        constants = [
            int(op.operands[0])
            for c in inside
            for op in self.computations[c]
            if op.kind == "constant" and re.fullmatch(r"\d+", "".join(op.operands))
        ]
        return max(constants, default=1)

    def walk(self, computation: str | None = None, times: int = 1) -> Iterator[tuple]:
        """(computation, operation, times it runs) for each operation.

        Bodies of loops and calls are entered, fusions are not. All branches of a conditional are
        entered, although one run takes one branch.
        """
        computation = computation or self.entry
        for op in self.computations[computation]:
            if op.kind == "while":
                body = re.search(r"body=%?([\w.\-<>]+)", op.rest)[1]
                yield from self.walk(body, times * self.trips(op))
            elif op.kind in ("call", "call-start", "conditional"):
                for called in op.calls:
                    yield from self.walk(called, times)
            else:
                yield computation, op, times


def read(text: str) -> Program:
    """The program in a text of `as_text()`, before or after compilation.

    Raises:
        ValueError: the text has no entry computation.

    Example:
        >>> text = "ENTRY %main (x: f32[2]) -> f32[2] {\\n  ROOT %x = f32[2]{0} parameter(0)\\n}"
        >>> read(text).root("main").nbytes
        8
    """
    computations: dict[str, list[Op]] = {}
    entry, operations = "", None  # the operations of the computation that is being read
    text = _ESTIMATE.sub(lambda match: re.sub(r"\s", "", match[0]), text)
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (head := _HEAD.match(line)):
            operations = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif operations is not None and line.startswith("  ") and (op := _op(line.strip())):
            operations.append(op)
    if not entry:
        raise ValueError(f"no program: {text[:60]!r}")
    return Program(computations, entry)


def shapes(kind: str) -> list[tuple[int, int]]:
    """(bytes, memory space) of each array of a type; space 0 is the device's main memory.

    Example:
        >>> shapes("(f32[2,3]{1,0:T(8,128)}, s4[10]{0:T(128)S(1)})")
        [(24, 0), (5, 1)]
    """
    arrays = []
    for m in _SHAPE.finditer(kind):
        space = re.search(r"S\((\d+)\)", m[3] or "")
        bits = math.prod(map(int, filter(None, m[2].split(",")))) * width(m[1])
        arrays.append((-(-bits // 8), int(space[1]) if space else 0))
    return arrays


def dims(kind: str) -> list[tuple[str, list[int]]]:
    """(element type, shape) of each array of a type.

    Example:
        >>> dims("(f32[2,3]{1,0}, pred[])")
        [('f32', [2, 3]), ('pred', [])]
    """
    return [(m[1], [int(n) for n in m[2].split(",") if n]) for m in _SHAPE.finditer(kind)]


def width(element: str) -> int:
    """Bits of one number of an element type.

    Example:
        >>> width("s4"), width("bf16"), width("pred")
        (4, 16, 8)
    """
    digits = re.search(r"\d+", element)
    bits = _BITS.get(element, int(digits[0]) if digits else 32)
    return bits


def _op(line: str) -> Op | None:
    """The operation on a line, as `ROOT %name = type kind(operands), rest`; None if it has none."""
    is_root = line.startswith("ROOT ")
    line = line.removeprefix("ROOT ").removeprefix("%")
    named = _NAME.match(line)
    if not named:
        return None
    start = named.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    kind, inner = opcode[1], line[start:end]
    operands = (inside,) if kind == "constant" else tuple(_operands(inside))
    return Op(named[1], kind, inner, operands, line[close:], is_root)


def _operands(inside: str) -> list[str]:
    """The names between an operation's parentheses, with or without types before them."""
    if "%" in inside:
        return re.findall(r"%([\w.\-]+)", inside)
    return [
        part.split()[-1] for part in re.sub(r"/\*.*?\*/", "", inside).split(",") if part.strip()
    ]


def _closing(line: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(line)):
        depth += (line[i] == "(") - (line[i] == ")")
        if not depth:
            return i + 1
    return len(line)
