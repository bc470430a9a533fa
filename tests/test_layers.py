"""Imports only go down, private JAX stays out, and no module shadows a public name."""

import ast
import graphlib
import pathlib

import pytest

import jaxmem

ROOT = pathlib.Path(jaxmem.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
CORE = [
    "leaf",
    "lazy",
    "select",
    "segmented",
    "operations",
    "lifting",
    "tiling",
    "folding",
    "codecs",
    "solvers",
    "planning",
    "budgeting",
]


def part(path):
    """The module or package directly under jaxmem that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The full names that a file imports, anywhere in it."""
    package = ("jaxmem", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            home = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join((*home, *(node.module or "").split("."))).strip(".")
            yield from (f"{home}.{name.name}" for name in node.names)


def test_imports_only_go_down():
    arrows = {}
    for path in FILES:
        below = {name.split(".")[1] for name in imports(path) if name.startswith("jaxmem.")}
        arrows.setdefault(part(path), set()).update(below - {part(path)})
    tuple(graphlib.TopologicalSorter(arrows).static_order())  # raises on a cycle
    for i, name in enumerate(CORE):
        assert not arrows.get(name, set()) & set(CORE[i:])


@pytest.mark.parametrize("path", sorted((ROOT / "codecs").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_codec_knows_no_other_codec(path):
    siblings = {name.split(".")[2] for name in imports(path) if name.startswith("jaxmem.codecs.")}
    no_codecs = {"integer_products", "packing", "scaled", "sparse", "stranded"}
    assert siblings <= no_codecs


def test_only_lifting_reads_jaxprs_and_nobody_reads_private_jax():
    for path in FILES:
        names = {".".join(name.split(".")[:2]) for name in imports(path)}
        assert "jax._src" not in names
        # the second makes a primitive, and reads no jaxpr
        assert path.name in ("lifting.py", "dispatch.py") or "jax.extend" not in names
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert not any(n.attr == "_src" for n in nodes)


def test_no_module_shares_its_name_with_a_public_function():
    for init in ROOT.rglob("__init__.py"):
        modules = {f.stem for f in init.parent.glob("*.py")} | {
            f.parent.name for f in init.parent.glob("*/__init__.py")
        }
        home = ".".join(init.relative_to(ROOT.parent).parts[:-1])
        public = {name.rpartition(".") for name in imports(init)}
        public = {name for package, _, name in public if package != home}  # not modules themselves
        assert not public & modules
