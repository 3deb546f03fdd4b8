"""Sphinx configuration: `make docs` builds docs/_build/html."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # svgmath

project = "tdmer"
author = "The tdmer authors"
project_copyright = "The tdmer authors, MIT licence"
version = release = installed_version("tdmer")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "svgmath",
]
exclude_patterns = ["_build", "figures"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True  # torch.abs, not <built-in method abs>
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110
add_module_names = False
napoleon_custom_sections = ["Source"]

# A reference that leads nowhere fails the build; those to other packages do not lead anywhere, so
# that the build needs no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|jaxtyping|matplotlib|numpy|os|pathlib|torch)\..*"),
    ("py:class", r"Tensor|ndarray|tdmer\.pretrained\.[MP]"),  # M and P stand for types
    ("py:class", "'n |'"),  # a shape, "n ...", of which Sphinx makes two
]

html_theme = "furo"
html_math_renderer = "svg"
html_title = f"tdmer {version}"
html_static_path = ["_static"]
html_css_files = ["tdmer.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Show no arguments where a class takes none, nor those of a named tuple: its fields."""
    app.connect("autodoc-process-signature", _signature)


def _signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    if isinstance(obj, type) and hasattr(obj, "_fields"):
        return "", None
    if isinstance(obj, type) and "__init__" not in vars(obj):
        return "()", None
    return signature, returns
