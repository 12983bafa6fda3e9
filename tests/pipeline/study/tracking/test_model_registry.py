"""A delivered network is an MLflow model that answers as the network does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.info import DatasetInfo
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.study.params.load import ParamsError, load_params
from pipeline.study.records.artifacts import NetworkSpec, PrunedArtifact
from pipeline.study.records.record import write_record
from pipeline.study.tracking.model_registry import deliver
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.store import Store
from pipeline.study.tracking.study_runs import Study
from pipeline.units.groups import Granularity
from pipeline.units.surgery import apply_plan
from tests import study as example
from tests.reports.samples import eval_record, sqlite_uri, train_record, write_study

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch.export and MLflow warn of each other (2026-11)
]


def shrunk(folder: Path) -> PrunedArtifact:
    """Half the channels of a small network."""
    torch.manual_seed(0)
    network = NetworkSpec("small", "resnet8", {"width": 4}, DatasetInfo("digits", (1, 8, 8), 10))
    model = network.build()
    units = network.units(model)
    saliency = {g.name: torch.rand(g.size) for g in units.groups if g.prunable}
    plan = select(saliency, Granularity.STRUCTURED, Target(rule="fraction", value=0.5), None)
    apply_plan(plan, model, units)
    artifact = PrunedArtifact(folder / "delivered")
    artifact.write({"network": network.to_json()}, plan, model)
    return artifact


@pytest.fixture
def delivered(tmp_path, monkeypatch):
    """A published study whose first pruning has an artefact."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path))
    study, artifact = write_study(tmp_path), shrunk(tmp_path)
    source = study.views["train/resnet8-dense-s0"][0]
    entry = study.prunings[0]
    assert source.key == entry.training
    record = replace(eval_record(train_record("dense")), plan_digest=artifact.plan.digest())
    write_record(entry.record, record)
    small = Study("sample", study.trainings[:1], study.prunings[:1])
    publish(small)
    return small.views[f"evaluate/{entry.key}"][0], artifact


def test_it_answers_as_the_network_does_and_is_logged_once(delivered):
    import mlflow

    view, artifact = delivered
    uri = deliver("sample", view, artifact)
    batch = torch.randn(5, 1, 8, 8)
    expected = artifact.model().eval()(batch).detach()
    found = mlflow.pytorch.load_model(uri)
    assert torch.allclose(found(batch), expected, atol=1e-6)
    signature = mlflow.models.get_model_info(uri).signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    store = Store("sample")
    (run,) = store.runs(f"tags.record_sha = '{view.sha}'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["model_uri"] == uri
    assert deliver("sample", view, artifact) == uri
    versions = store._client.search_model_versions(f"name = 'sample-{view.key}'")
    assert [v.version for v in versions] == [1]
    assert "mlartifacts" in store._client.get_model_version_download_uri(versions[0].name, "1")


def test_another_plan_is_refused(delivered):
    view, artifact = delivered
    other = replace(view, document=view.document.replace(artifact.plan.digest(), "0" * 64))
    with pytest.raises(ValueError, match="not the plan"):
        deliver("sample", other, artifact)


def test_a_clone_without_artefacts_reports_all_the_same(delivered, tmp_path):
    assert deliver("sample", delivered[0], PrunedArtifact(tmp_path / "none")) is None


def test_params_name_prunings(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(example.PARAMS + "deliver: [a-p50, b]\n")
    with pytest.raises(ParamsError, match="deliver: 'b' is no pruning"):
        load_params(path)
    path.write_text(example.PARAMS + "deliver: [a-p50]\n")
    assert load_params(path).file.deliver == ("a-p50",)


@pytest.mark.slow
def test_mlflow_serves_it(delivered, tmp_path):
    view, artifact = delivered
    uri = deliver("sample", view, artifact)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager",
               "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with (tmp_path / "serve.log").open("w") as log:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                  env={**os.environ, "PATH": path})  # fmt: skip
    try:
        batch = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
        answer = _ask(f"http://127.0.0.1:{port}/invocations", batch, server, tmp_path)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    expected = artifact.model().eval()(torch.from_numpy(batch)).detach().numpy()
    assert np.allclose(np.array(answer["predictions"]), expected, atol=1e-5)


def _ask(url, batch, server, folder):
    """The answer, as soon as the server is up."""
    body = json.dumps({"inputs": batch.tolist()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for _ in range(180):
        assert server.poll() is None, (folder / "serve.log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None
        except OSError:
            time.sleep(0.5)
    raise AssertionError((folder / "serve.log").read_text()[-3000:])
