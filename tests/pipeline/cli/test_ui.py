"""`espalier ui`: the address that it prints, and every click path of docs/comparing.md."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click
import pytest

from pipeline.cli.ui import refuse_taken
from pipeline.study.records.record import EvalRecord, read_record, write_record
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.saved_views import VIEWS
from pipeline.study.tracking.study_runs import Study
from tests import browser
from tests.reports.samples import sqlite_uri, write_study

ROOT = Path(__file__).resolve().parents[3]
TEXT = "return document.body.innerText"


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    with closing(socket.socket()) as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def opened(folder: Path) -> Iterator[str]:
    """The address that `espalier ui` prints for the study in `folder`; ended by SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--no-browser", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        said = [shell.stdout.readline(), shell.stdout.readline()]
        try:
            found = re.fullmatch(r"Runs and saved views: (http://127.0.0.1:\d+/\S+)\n", said[1])
            assert found, said
            yield found.group(1)
        finally:
            shell.send_signal(signal.SIGTERM)
            shell.wait(60)
    assert not listens(port)


def test_a_port_that_another_server_has_is_refused() -> None:
    """Its answer would be taken for ours: the page of other runs."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(click.ClickException, match=f"--port {port + 1}"):
            refuse_taken("127.0.0.1", port)
    refuse_taken("127.0.0.1", free_port())


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.skipif(not browser.DRIVER or not browser.CHROMIUM, reason=browser.MISSING)
@pytest.mark.skipif(browser.wide_font(), reason=browser.NO_FONT)
def test_every_documented_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1400 px, with MLflow's assistant open as on a first visit: names and headings in full."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path))
    publish(with_rows_at_90(write_study(tmp_path)))
    params = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub("(?m)^study: .*", "study: sample", params))
    with opened(tmp_path) as address, browser.chromium(tmp_path) as page:
        page.resize(1400, 1000)
        page.open(address)
        page.wait(f"{TEXT}.includes('train/resnet8-dense-s0')", 120)
        seen = page.run(TEXT)
        assert all(view.name in seen for view in VIEWS)  # the links above the runs
        wait_until_whole(page, "train/resnet8-dense-s0")
        find = "return document.querySelector(`a[href*='${arguments[0]}']`).href"
        links = {view.key: page.run(find, view.key) for view in VIEWS}
        from_the_menu(page)
        for view in VIEWS:
            from_the_link(page, links[view.key], [s.name for s in view.sections])


def with_rows_at_90(study: Study) -> Study:
    """With 90% of the weights removed in the two rows of hspg."""
    for entry in study.prunings:
        if "hspg" in entry.key:
            record = read_record(EvalRecord, entry.record)
            write_record(entry.record, replace(record, weight_sparsity=0.9))
    return study


def from_the_menu(page: browser.Browser) -> None:
    """Views, "Which method at 90%?", the chart symbol: the rows of hspg, not the dense one."""
    press = """
      const found = [...document.querySelectorAll(arguments[0])]
        .find((e) => e.innerText.trim() === arguments[1] && e.offsetParent);
      if (found) { const at = found.getBoundingClientRect();
                   return [at.x + at.width / 2, at.y + at.height / 2]; }
    """
    row = VIEWS[0]
    page.press(page.wait(press, 60, "button", "Views"))
    page.press(page.wait(press, 60, "[role^=menuitem]", row.name))
    page.wait(f"{TEXT}.includes('Group: hspg-p50 | resnet8-hspg')", 60)
    wait_until_whole(page, "Group: hspg-p50 | resnet8-hspg")
    wait_until_whole(page, "final/top1")
    assert "resnet8-hspg-s0-p50" not in page.run(TEXT)  # groups are closed
    assert "dense-p50" not in page.run(TEXT)
    page.press(page.wait(press, 60, "label:has(input[value='CHART'])", ""))
    page.wait(f"{TEXT}.includes('{row.sections[0].name}')", 60)


def from_the_link(page: browser.Browser, link: str, headings: list[str]) -> None:
    """One of the links above the runs opens the charts in another tab; here in this one, anew."""
    page.open("about:blank")
    page.open(link)
    for heading in headings:
        page.wait(f"{TEXT}.includes({heading!r})", 60)


def wait_until_whole(page: browser.Browser, text: str) -> None:
    """Until the elements with this text show all of it: columns get their width after the text."""
    script = """
      const own = [...document.querySelectorAll("body *")]
        .filter((e) => !e.children.length && e.innerText?.trim() === arguments[0])
        .filter((e) => e.offsetParent);
      return own.length && !own.some((e) => e.scrollWidth > e.clientWidth + 1
        && getComputedStyle(e).overflowX !== "visible");
    """
    page.wait(script, 60, text)
