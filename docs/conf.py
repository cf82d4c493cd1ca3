"""Sphinx's configuration of the site: `make site` builds it into build/site."""

import sys
from pathlib import Path

from jkoflow import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "jkoflow"
author = "The jkoflow developers"
copyright = f"{author}; Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    # of docs/extensions
    "animation",
    "command_line",
    "docstrings",
    "first_lines",
    "mathml",
    "repository_links",
    "whole_streams",
]
exclude_patterns = ["extensions", "figures/*.md"]
source_suffix = {".md": "myst-nb"}
nitpicky = True
smartquotes = False  # "--flag" stays two hyphens
highlight_language = "text"
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks run in every build. A cell that fails, or writes to stderr, such as a warning, is a warning of Sphinx's.
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds for a cell: machines may be busy
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "error"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"jkoflow {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
