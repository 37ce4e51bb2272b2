"""Configuration of the documentation: ``make docs`` builds it and runs its examples, without the network."""

import doctest
import re
import warnings

import mlcorr

project = "mlcorr"
author = "The mlcorr developers"
copyright = author
version = release = mlcorr.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
if tags.has("online"):  # noqa: F821  # sphinx-build -t online: names of other projects become links, by the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
    }
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mlcorr {version}"
smartquotes = False  # code and shapes such as (..., C) stay as they are written

# sphinx-autodoc-typehints calls a method that Sphinx 10 will drop; nothing on our side can be done about it.
warnings.filterwarnings("ignore", message=".*set_application.*", module="sphinx_autodoc_typehints")

# A name in single backquotes is a Python object, and a reference that leads nowhere is an error.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [  # other projects' objects, and aliases, which a signature may name as they stand in the code
    ("py:.*", r"(torch|numpy|nn|collections|typing|os|matplotlib)\..*|Tensor|Ellipsis"),
    ("py:class", r"Backend|BatchDependency|Inputs|Level|Normalization|Orders|Reduction|dist\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
typehints_defaults = "comma"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Differs from the authorsʼ code", "Reference", "Shape"]

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Every ``>>>`` on a page is run by ``sphinx -b doctest``, with the flags that pytest uses for docstrings.
doctest_global_setup = "import torch"
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1


def _napoleon_headings(app, what, name, obj, options, lines):  # noqa: ARG001
    """Give headings with an apostrophe one that is a letter (U+02BC): napoleon takes only words for a heading."""
    for index, line in enumerate(lines):
        lines[index] = re.sub(r"^(Differs from the authors)' code:$", "\\1ʼ code:", line)


def setup(app):
    """Connect the event handlers."""
    app.connect("autodoc-process-docstring", _napoleon_headings, priority=400)  # napoleon's is 500
