"""What stands around the code: the version, the types, and the names in the reference."""

import ast
import contextlib
import importlib
import importlib.metadata
import inspect
import operator
import pathlib
import re
import sys

import pytest

import jaxmem as jm
from jaxmem import cli
from jaxmem.core.pictures import new_figure
from jaxmem.evaluation.text_overlap import text_score
from jaxmem.formats import chat_template, onnx_graph


def test_the_version_is_that_of_the_installed_package(capsys):
    version = importlib.metadata.version("jaxmem")
    assert jm.__version__ == version
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxmem {version}\n"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'encod'"):
        jm.encod  # noqa: B018


def test_type_checkers_read_the_annotations():
    assert (pathlib.Path(jm.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("h5py", "hdf5", jm.interop.read_params),
        ("onnx", "onnx", onnx_graph.onnx_weights),
        ("zstandard", "data", lambda path: jm.data.write(path, [], method="zstd")),
        ("jinja2", "demo", lambda path: chat_template.render("", [{}])),
        ("matplotlib.figure", "demo", lambda path: new_figure(1, 1)),
        ("sacrebleu", "eval", lambda path: text_score("chrf", "a", ["a"])),
        ("jiwer", "eval", lambda path: text_score("wer", "a", ["a"])),
        (
            "jax_privacy.auditing",
            "privacy",
            lambda path: jm.train.audited_epsilon([1], [1], delta=0.1),
        ),
        ("tensorboardX", "tracking", lambda path: jm.training.TensorBoard(path.parent)),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, extra, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "w.h5").touch()
    with pytest.raises(ImportError, match=rf'{package.split(".")[0]}: pip .*"jaxmem\[{extra}\]"'):
        call(tmp_path / "w.h5")


EXPERIMENTS = sorted((pathlib.Path(__file__).parents[1] / "experiments").rglob("*.py"))
NAMESPACES = [
    "solvers",
    "layouts",
    "interop",
    "models",
    "serving",
    "optimizers",
    "adapters",
    "train",
    "data",
    "evaluation",
    "training",
]
REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference"


def public(space):
    """Names of a namespace that the package defines, with what they name; no modules."""
    ours = lambda value: str(getattr(value, "__module__", "")).startswith("jaxmem")
    named = {name: getattr(space, name) for name in dir(space) if not name.startswith("_")}
    return {n: v for n, v in named.items() if ours(v) and not inspect.ismodule(v)}


def documented():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md")))
    return re.findall(r"^\.\. auto(?:class|function):: jaxmem\.(\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize("space", ["", *NAMESPACES])
def test_every_public_name_is_in_the_reference(space):
    names, top = set(documented()), public(jm)
    for name, value in public(getattr(jm, space) if space else jm).items():
        path = f"{space}.{name}" if space and top.get(name) is not value else name
        assert path in names, f"jm.{path} is missing in docs/reference"


def test_the_reference_has_only_names_that_exist_and_each_once():
    names = documented()
    assert len(set(names)) == len(names)
    for name in names:
        operator.attrgetter(name)(jm)


def names_of_jaxmem(path):
    """Dotted names that a script reads of the package, by imports and as `jm.x` or `jm.x.y`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxmem"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"jm(\.\w+)+", ast.unparse(node)):
            yield ast.unparse(node).replace("jm", "jaxmem", 1)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_reads_only_names_that_the_package_has(path):
    for name in names_of_jaxmem(path):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)  # makes a module an attribute of its package
        operator.attrgetter(name.removeprefix("jaxmem."))(jm)
