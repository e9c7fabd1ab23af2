"""Configuration of Sphinx."""

import metatrain_lorem

project = "metatrain-lorem"
author = "The metatrain-lorem developers"
version = release = metatrain_lorem.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosectionlabel",
    "sphinx.ext.mathjax",
    "myst_parser",
]
html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {release}"

autodoc_member_order = "bysource"
autosectionlabel_prefix_document = True
