"""A real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: No network of its own, and nothing that outlives it.
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


def chromium() -> tuple[str, str]:
    """Find the browser and its driver.

    Where there is none the test is skipped; it fails if the environment variable ``CI`` is set.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        absent = "no chromium with its chromedriver: apt-get install chromium-driver"
        if os.environ.get("CI"):
            raise AssertionError(absent)
        pytest.skip(absent)
    return browser, driver


@contextmanager
def browsing(profile: Path, *, scripts: bool = True) -> Iterator[Any]:
    """Give a browser with a fresh profile.

    :param scripts: whether pages may run JavaScript.
    """
    browser, driver = chromium()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()


def complaints(window: Any) -> list[str]:
    """Return what the browser complains of: blocked by the policy, not found, errors of scripts."""
    return [line["message"] for line in window.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def look(window: Any, *, width: int, scheme: str) -> None:
    """Let the browser be so wide, in pixels, and prefer "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
