"""The rendered reference: `sphinx-build -W -b html docs docs/_build/html`."""

import os
import re

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxmem

project = "jaxmem"
author = "The jaxmem authors"
release = jaxmem.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build", "examples", "quality.png"]

html_theme = "furo"
html_title = f"jaxmem {release}"

nb_execution_mode = "off"  # tests/test_notebooks.py runs them
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

_CODE = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)


def markdown_to_rst(app, what, name, obj, options, lines):
    """Escape what reStructuredText would read as markup in a docstring; code and examples stay."""
    blocks = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(b if ">>>" in b else _escaped(b) for b in blocks).split("\n")


def _escaped(block):
    parts = _CODE.split(block)  # text, code, text, code, ...
    parts[::2] = [re.sub(r"([*|\\]|_(?=\W))", r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"``{' '.join(code.strip('`').split())}``" for code in parts[1::2]]
    for i in range(1, len(parts), 2):  # a literal ends only before a space or a mark
        parts[i + 1] = re.sub(r"^(?=\w)", r"\\ ", parts[i + 1])
    return "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=100)
