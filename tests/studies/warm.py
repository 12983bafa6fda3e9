"""Processes that begin with their libraries loaded: `python -m ...` and `dvc ...` for study tests.

A study test starts dozens of processes, and importing torch, MLflow and DVC is most of what each of
them does. The server below imports these once and forks for every command; `folder` holds two
programs, `python` and `dvc`, that send it their arguments, folder, environment and streams and end
as the forked process ends. The code of the project is not loaded: it comes from the study's copy.

What only a process of its own can show is tested without this: kills, stops, several processes for
one training, machines without MLflow. A forked process also shares the server's hash seed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import marshal
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = """
    torch torchvision pandas sklearn.datasets scipy.stats matplotlib.pyplot
    matplotlib.backends.backend_agg matplotlib.backends.backend_svg pydantic.dataclasses
    ruamel.yaml safetensors.torch tqdm click PIL.Image
    mlflow mlflow.tracking mlflow.store.tracking.sqlalchemy_store
    mlflow.store.model_registry.sqlalchemy_store mlflow.store.artifact.local_artifact_repo
    mlflow.store.db.utils sqlalchemy.dialects.sqlite alembic.command
    dvc.cli.parser dvc.repo.reproduce dvc.repo.index dvc.parsing dvc.stage.run dvc.stage.cache
    networkx scmrepo.git configobj dulwich.ignore dulwich.worktree
    dvc_data.hashfile.db dvc.repo.push dvc.repo.fetch
"""
PROGRAM = """\
#!{python} -IS
import _socket, marshal, os, sys
name = os.path.basename(sys.argv[0])
arguments = sys.argv[1:]
if name == "python":
    if arguments[:1] == ["-u"]:  # torchrun's
        arguments = arguments[1:]
    if arguments[:1] != ["-m"]:
        os.execv({python!r}, [{python!r}, *sys.argv[1:]])
request = marshal.dumps((name, arguments, os.getcwd(), dict(os.environ)))
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
streams = b"".join(n.to_bytes(4, sys.byteorder) for n in (0, 1, 2))
rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)]
server.sendmsg([len(request).to_bytes(4, "big")], rights)
server.sendall(request)
answer = server.recv(4)
if not answer:
    sys.exit("the server of tests/studies/warm.py is gone")
status = int.from_bytes(answer, "big")
if os.WIFSIGNALED(status):
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""
"""What `python` and `dvc` are; few imports, so that it starts in 10 ms."""

Request = tuple[str, list[str], str, dict[str, str]]
"""Program, arguments, working folder, environment."""
_users: Any = None


def folder(environment: dict[str, str]) -> Path:
    """The folder with `python` and `dvc`; the server is started once for all workers of pytest."""
    global _users
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    place = Path(tempfile.gettempdir()) / f"warm-{run}"
    if _users is None:
        place.mkdir(exist_ok=True)
        _users = (place / "users").open("a")
        fcntl.flock(_users, fcntl.LOCK_SH)  # until this process ends: the server looks at it
        with (place / "start").open("a") as one:
            fcntl.flock(one, fcntl.LOCK_EX)
            if not (place / "socket").exists():
                start(place, environment)
    return place


def start(place: Path, environment: dict[str, str]) -> None:
    """Write the programs and start the server; returns when it listens."""
    for name in ("python", "dvc"):
        program = place / name
        program.write_text(PROGRAM.format(python=sys.executable, address=str(place / "socket")))
        program.chmod(0o755)
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.studies.warm", str(place)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    for _ in range(30000):  # ten minutes: a busy machine takes more than two
        if (place / "socket").exists():
            server.returncode = 0  # it ends by itself: no warning that it still runs
            return
        assert server.poll() is None, (place / "log").read_text()
        time.sleep(0.02)
    raise AssertionError("the server of tests/studies/warm.py does not listen")


def main(place: Path) -> None:
    """Serve; in a forked process do what was asked, as the interpreter would."""
    path = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    for name in LIBRARIES.split():
        importlib.import_module(name)
    compile_ahead()
    gc.collect()
    gc.freeze()  # no collection in a forked process looks at the libraries again
    name, arguments, cwd, environment = serve(place)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    own = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [cwd, *own, *path]
    end(status_of(name, arguments))


def status_of(name: str, arguments: list[str]) -> int:
    """Run a program as the interpreter runs its main module; returns its exit status."""
    try:
        if name == "dvc":
            from dvc.cli import main as dvc

            sys.argv = ["dvc", *arguments]
            return dvc(arguments)
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0
        print(exit.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(status: int) -> None:
    """What the interpreter does at its end, but for taking apart every module."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def compile_ahead() -> None:
    """Compile the project's files once; a copy with the same bytes has the same code."""
    known: dict[bytes, CodeType] = {}
    for place in ("pipeline", "stages", "methods", "models", "reports"):
        for file in sorted((ROOT / place).rglob("*.py")):
            data = file.read_bytes()
            known[data] = compile(data, file, "exec", dont_inherit=True)
    original = SourceFileLoader.source_to_code

    def source_to_code(self: Any, data: Any, path: Any, **more: Any) -> CodeType:
        return known.get(bytes(data)) or original(self, data, path, **more)

    SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign]


def serve(place: Path) -> Request:
    """Accept requests while there are tests; returns in each process forked to do one."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place / "new"))
    listening.listen(64)
    listening.settimeout(2)
    (place / "new").rename(place / "socket")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a forked process
    users = (place / "users").open("a")
    while True:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place)  # the tests have ended
                os._exit(0)
            continue
        if os.fork() == 0:
            listening.close()
            users.close()
            return accompanied(connection)
        connection.close()


def accompanied(connection: socket.socket) -> Request:
    """Fork once more: the first process waits and answers, the second one gets the request."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        request: Request = marshal.loads(file.read(int.from_bytes(size, "big")))
    worker = os.fork()
    if worker == 0:
        connection.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        return request
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    ended = os.pidfd_open(worker)
    if connection in select.select([connection, ended], [], [])[0]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTERM)  # whoever asked was killed
    _, status = os.waitpid(worker, 0)
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
