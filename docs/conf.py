"""The documentation's site: `make docs`."""

import warnings

from sbc_plugin import __version__

warnings.filterwarnings("ignore", message=".torch.jit.script")  # norse compiles functions while it is imported
warnings.filterwarnings("ignore", message="brevitas.fx is deprecated")
warnings.filterwarnings("ignore", message="fast_hadamard_transform")

project = "sbc-plugin"
release = __version__
copyright = "the sbc-plugin authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "notebooks"]
html_theme = "furo"
html_title = f"sbc-plugin {release}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
napoleon_use_ivar = True
