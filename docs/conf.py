"""How Sphinx builds the manual: ``tox -e docs``."""

import rigatoni

project = "rigatoni"
version = release = rigatoni.__version__
copyright = "its authors; Apache-2.0"

extensions = ["sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
# `--option` stays `--option`.
smartquotes = False
html_theme = "furo"
html_title = f"rigatoni {version}"

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
# Types of others, to which nothing leads where there is no network; and in signatures, what is not public.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|pymongo|bson|os|pathlib|datetime|flask|click|prometheus_client)\..*"),
    # Unpack: what Python 3.10 has in typing_extensions only.
    ("py:class", r"_\w+|rigatoni\.\w+\..*|Unpack"),
]
