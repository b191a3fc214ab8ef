"""The book's configuration for Sphinx; `make book` runs it on what build.py has gathered."""

import os
from importlib.metadata import distribution
from pathlib import Path

project = "facelab"
author = "the authors of facelab"
copyright = author
language = "en"
extensions = ["myst_nb", "sphinxcontrib.bibtex"]

nb_execution_mode = "off"  # the committed outputs are shown
# a mesh that can be turned needs Plotly from elsewhere: its picture stands in
nb_mime_priority_overrides = [
    ("html", kind, rank)
    for rank, kind in enumerate(("image/jpeg", "image/png", "text/markdown", "text/plain"), 1)
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

# MathJax lies in a package: what it needs is copied, nothing of it is executed here
MATHJAX = Path(str(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline")), "static")
html_static_path = [str(MATHJAX), "slides.css"]
mathjax_path = "mathjax/tex-mml-chtml.js"
mathjax3_config = {"options": {"processHtmlClass": "tex2jax_process|mathjax_process|math|output_area"}}

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"

revealjs_static_path = html_static_path
revealjs_style_theme = "white"
revealjs_css_files = ["slides.css"]

html_theme = "sphinx_book_theme"
html_title = "facelab: a course in inverse face rendering"
html_theme_options: dict[str, object] = {"show_toc_level": 2, "home_page_in_toc": True}
html_show_copyright = False
html_copy_source = False
# https://github.com/owner/name: the workflow that publishes the book says it
if repository := os.environ.get("BOOK_REPOSITORY"):
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": os.environ.get("BOOK_BRANCH", "main"),
        "use_repository_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        },
    }
