"""`pip install .` gives the command and the API, outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import study

ROOT = Path(__file__).resolve().parents[3]
pytest.importorskip("setuptools", reason="builds the package")


@pytest.mark.slow
def test_an_installed_copy_has_the_command_and_the_api(tmp_path: Path) -> None:
    source, site = study.create(tmp_path / "source"), tmp_path / "site"
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def said(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert "units" in said(str(site / "bin/espalier"), "--help")
    shown = said(str(site / "bin/espalier"), "units", "--model", "resnet_cifar/resnet20")
    assert "272,474 parameters" in shown
    place = said(sys.executable, "-c", "import pipeline.api as a; print(a.__file__)")
    assert Path(place.strip()).is_relative_to(site)
    for package in ("pipeline", "methods", "models", "stages", "reports"):
        assert (site / package / "py.typed").is_file()
    for name in ("pipeline/cli/drawing.html", "reports/build/web"):
        assert (site / name).exists()


def test_every_pin_of_the_lock_is_for_every_system_or_says_which() -> None:
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    for pin in pins:
        assert "==" in pin, pin
        if pin.startswith(("cuda", "nvidia", "triton")):
            assert "sys_platform == 'linux'" in pin, pin
        if pin.startswith("pywin"):
            assert "sys_platform == 'win32'" in pin, pin
