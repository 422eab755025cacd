"""Where a mongod comes from, and what is said where none can be had."""

import importlib.util
import stat
import sys
from pathlib import Path

import pytest

from rigatoni import ConfigurationError
from rigatoni.mongod import ReplicaSet, find_mongod


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any mongod: an empty PATH, and an empty package in front of the embedded one."""
    monkeypatch.delenv("RIGATONI_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "fiftyone").mkdir()
    (tmp_path / "fiftyone" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def program(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_any_mongod_the_message_names_the_three_mends(nowhere: Path) -> None:
    with pytest.raises(ConfigurationError) as failure:
        find_mongod()

    for mend in ('pip install ".[embedded]"', "PATH", "RIGATONI_MONGOD"):
        assert mend in str(failure.value)


def test_mongod_is_taken_from_the_variable_then_from_path(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = program(nowhere / "bin" / "mongod", "#!/bin/sh\n")
    assert find_mongod() == on_path

    named = program(nowhere / "other", "#!/bin/sh\n")
    monkeypatch.setenv("RIGATONI_MONGOD", named)
    assert find_mongod() == named


def test_the_embedded_mongod_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("fiftyone") is None:
        pytest.skip("the extra `embedded` is not installed")
    monkeypatch.delenv("RIGATONI_MONGOD", raising=False)
    monkeypatch.setenv("PATH", "")

    assert find_mongod().endswith("/fiftyone/db/bin/mongod")
    assert "fiftyone" not in sys.modules


def test_a_variable_that_names_no_program_is_an_error_though_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGATONI_MONGOD", "/no/such/mongod")

    with pytest.raises(ConfigurationError, match="RIGATONI_MONGOD='/no/such/mongod' is no executable file"):
        ReplicaSet().start()


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (
            "#!/bin/sh\necho 'x: error while loading shared libraries: libcurl.so.4: cannot open' >&2; exit 127",
            "install libcurl4",
        ),
        (
            "#!/bin/sh\necho 'x: error while loading shared libraries: libodd.so.1: cannot open' >&2; exit 127",
            "libodd.so.1",
        ),
        ("#!/bin/sh\necho 'GLIBC_2.99 not found' >&2; exit 1", "GLIBC_2.99 not found"),
        ("#!/bin/sh\nkill -ILL $$", "AVX"),
        ("no program at all", "Exec format error"),
    ],
)
def test_a_mongod_that_does_not_run_is_an_error_with_the_mend(nowhere: Path, text: str, mend: str) -> None:
    binary = program(nowhere / "bin" / "mongod", text)

    with pytest.raises(ConfigurationError, match=mend) as failure:
        find_mongod()

    assert binary in str(failure.value)
