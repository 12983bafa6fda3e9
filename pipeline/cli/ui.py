"""Open the runs of the study in this folder in MLflow.

Starts MLflow's page on this machine and prints the address of the runs and saved views. If
MLFLOW_TRACKING_URI names a server, nothing is started. Ctrl-C ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from typing import IO

import click

from pipeline.study.params.load import load_params
from pipeline.study.tracking.store import Store

PATIENCE_S = 120.0
_LAST_WORDS = 1500


def address(base: str, experiment: str) -> str:
    """The address of an experiment's runs and saved views, not of MLflow's overview."""
    return f"{base.rstrip('/')}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def refuse_taken(host: str, port: int) -> None:
    """Before MLflow is started: another server there would answer with other runs.

    Raises:
        click.ClickException: something listens at this port.
    """
    with contextlib.closing(socket.socket()) as s:
        s.settimeout(5)
        if s.connect_ex((host, port)) == 0:
            raise click.ClickException(
                f"port {port} is taken, perhaps by another MLflow: espalier ui --port {port + 1}"
            )


def wait_for(base: str, server: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Wait until the server answers.

    Raises:
        click.ClickException: it ended, with the end of its log, or did not answer in time.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if server.poll() is not None:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise click.ClickException(f"MLflow ended with exit code {server.returncode}:\n{said}")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise click.ClickException(f"no answer from {base} within {PATIENCE_S:g} s")


@click.command(help=__doc__)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 shows it to others")
@click.option("--port", default=5000, show_default=True)
@click.option("--browser/--no-browser", default=True, show_default=True, help="open the address")
def ui(host: str, port: int, browser: bool) -> None:
    store = Store(load_params().file.study)
    if store.uri.startswith("http"):
        _show(address(store.uri, store.experiment_id), browser)
        return
    refuse_taken(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends MLflow as Ctrl-C does
    base = f"http://{host}:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--backend-store-uri", store.uri, "--host", host, "--port", str(port)),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    click.echo("Starting MLflow ...")
    with (
        tempfile.TemporaryFile() as log,  # it says much that nobody needs, unless it fails
        subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log) as server,
    ):
        try:
            wait_for(base, server, log)
            _show(address(base, store.experiment_id), browser)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()


def _show(page: str, browser: bool) -> None:
    click.echo(f"Runs and saved views: {page}")
    if browser:
        webbrowser.open(page)
