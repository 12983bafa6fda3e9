"""Open the runs of the study in this folder in MLflow.

Starts MLflow's page on this machine and prints the address of the runs and saved views. If
MLFLOW_TRACKING_URI names a server, nothing is started. Ctrl-C ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser

import click

from pipeline.study.params.load import load_params
from pipeline.study.tracking.store import Store

PATIENCE_S = 120.0


def address(base: str, experiment: str) -> str:
    """The address of an experiment's runs and saved views, not of MLflow's overview."""
    return f"{base.rstrip('/')}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def wait_for(base: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers.

    Raises:
        click.ClickException: it ended, or did not answer in time.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise click.ClickException(
                f"MLflow ended with exit code {server.returncode}; see above"
            )
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
    base = f"http://{host}:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--backend-store-uri", store.uri, "--host", host, "--port", str(port)),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    click.echo("Starting MLflow ...")
    with subprocess.Popen(command, env=os.environ | quiet, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(base, server)
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
