"""Imports only go down, private JAX stays out, and no module shadows a public name."""

import ast
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import jaxmem

ROOT = pathlib.Path(jaxmem.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
WINGS = [  # a wing imports only wings above it
    "kernels",
    "io",
    "cpu_kernels",
    "core",
    "data",
    "codecs",
    "optimizers",
    "compiler",
    "offload",
    "kv_cache",
    "calibration",
    "formats",
    "parallel",
    "solvers",
    "adapters",
    "train",
    "architectures",
    "models",
    "serving",
    "interop",
    "evaluation",
    "structured_pruning",
    "compression",
    "planner",
    "training",
    "commands",
]
ROOMS = [  # of architectures: a room imports only rooms above it, and no module beside the rooms
    "families",
    "configs",
    "layers",
    "attention",
    "recurrent",
    "weights",
    "gguf",
]
MOST_ARROWS = 125  # between wings


def wing(path):
    """The package directly under jaxmem that a file belongs to, or the module itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path, nodes=ast.walk):
    """The full names that a file imports, anywhere in it or in the nodes of a part."""
    package = ("jaxmem", *path.relative_to(ROOT).parts[:-1])
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            home = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join((*home, *(node.module or "").split("."))).strip(".")
            yield from (f"{home}.{name.name}" for name in node.names)


def arrows():
    """{wing: the other wings that its files import}."""
    found = {name: set() for name in WINGS}
    for path in FILES:
        if wing(path) in found:
            names = [name.split(".") for name in imports(path) if name.startswith("jaxmem.")]
            found[wing(path)] |= {name for _, name, *_ in names} - {wing(path)}
    return found


def test_the_package_holds_wings_and_nothing_else():
    entries = {p.name for p in ROOT.iterdir()} - {"__pycache__"}
    assert entries == {"__init__.py", "__main__.py", "cli.py", "names.py", "py.typed", *WINGS}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_list_the_wings_in_their_order(page):
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT.parent / page).read_text(), re.M)
    assert [name for name in rows if name in WINGS] == WINGS


def test_a_wing_imports_only_wings_above_it():
    found = arrows()
    for i, name in enumerate(WINGS):
        assert found[name] <= set(WINGS[:i]), name
    count = sum(map(len, found.values()))
    print(f"{count} imports between {len(WINGS)} wings")
    assert count <= MOST_ARROWS


def test_a_room_of_architectures_imports_only_rooms_above_it():
    inits = {path.parent for path in ROOT.glob("*/*/__init__.py")}
    assert inits == {ROOT / "architectures" / room for room in ROOMS}  # no other wing has rooms
    for i, room in enumerate(ROOMS):
        for path in (ROOT / "architectures" / room).glob("*.py"):
            names = [name.split(".") for name in imports(path)]
            used = {name[2] for name in names if name[:2] == ["jaxmem", "architectures"]}
            assert used <= set(ROOMS[: i + 1]), path


@pytest.mark.parametrize("path", sorted((ROOT / "codecs").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_codec_knows_no_other_codec(path):
    siblings = {name.split(".")[2] for name in imports(path) if name.startswith("jaxmem.codecs.")}
    assert siblings <= {
        "cpu_layout",
        "integer_matmul",
        "host_packing",
        "packing",
        "float16_scales",
        "row_sparse",
        "scaled",
        "sparse",
        "trained_product",
    }


def test_only_what_replays_jaxprs_reads_them_and_nobody_reads_private_jax():
    for path in FILES:
        names = {".".join(name.split(".")[:2]) for name in imports(path)}
        assert "jax._src" not in names
        # dispatch makes a primitive, and reads no jaxpr
        readers = {"replay", "repeated_layers", "traced_function", "jaxpr_rewrites", "dispatch"}
        readers |= {"products_before_scan", "layer_program", "token_runs"}
        assert path.stem in readers or "jax.extend" not in names
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
        assert not any(n.attr == "_src" for n in nodes)


def test_no_module_shares_its_name_with_a_public_function():
    for init in [ROOT / "names.py", *ROOT.glob("*/**/__init__.py")]:
        modules = {f.stem for f in init.parent.glob("*.py")} | {
            f.parent.name for f in init.parent.glob("*/__init__.py")
        }
        home = ".".join(init.relative_to(ROOT.parent).parts[:-1])
        public = {name.rpartition(".") for name in imports(init)}
        public = {name for package, _, name in public if package != home}  # not modules themselves
        assert not public & modules


def test_orbax_is_imported_when_it_is_first_used():
    at_top = {path: set(imports(path, lambda tree: tree.body)) for path in FILES}
    readers = {path for path, names in at_top.items() if any("orbax." in f"{n}." for n in names)}
    assert {path.stem for path in readers} == {"orbax", "run_checkpoints"}
    homes = {f"jaxmem.{path.parent.name}.{path.stem}" for path in readers}
    for path, names in at_top.items():
        home = {name.rpartition(".")[0] for name in names}
        assert path in readers or not homes & (names | home), path


def test_nnx_is_imported_at_the_top_of_one_module_which_is_imported_when_it_is_used():
    at_top = {path: set(imports(path, lambda tree: tree.body)) for path in FILES}
    readers = {path.stem for path, names in at_top.items() if any("flax.nnx" in n for n in names)}
    users = [path for path, names in at_top.items() if any("llama_nnx" in n for n in names)]
    assert readers == {"llama_nnx"} and not users


def test_the_library_is_imported_when_a_file_or_a_line_asks_for_its_names(tmp_path):
    jaxmem.save(tmp_path / "w.jm", {"w": jaxmem.Int(8).encode(np.ones((8, 2), np.float32))})
    lines = f"""
import sys
import jaxmem.commands.generate
from jaxmem.io.checkpoint import load
assert not {{"jaxmem.names", "jaxmem.planner", "optax"}} & set(sys.modules)
import jaxmem.compression.plan  # asks this package for the wing of codecs
assert "jaxmem.names" not in sys.modules
for name in [n for n in sys.modules if n.startswith("jaxmem.codecs")]:
    del sys.modules[name]  # as if no command had imported them
print(type(load({str(tmp_path / "w.jm")!r})["w"]).__module__, "Plan" in dir(jaxmem))
"""
    run = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True)
    assert run.stdout == "jaxmem.codecs.integer True\n"
