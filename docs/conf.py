"""The documentation's build: Markdown pages, with a reference that is generated from the code before each build."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate_reference  # noqa: E402  # beside this file

generate_reference.write_all(HERE / "reference" / "generated")

project = "megascratch"
author = "the megascratch maintainers"
extensions = ["myst_parser"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["reference/generated/*"]
html_theme = "furo"
html_title = "megascratch"
html_show_sphinx = False
suppress_warnings: list[str] = []
