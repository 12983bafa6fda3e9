"""The study as DVC sees it. The only importer of dvc.

`dvc repro` opens the whole repository and writes dvc.lock once per stage. Here one index of this
study's dvc.yaml stays open and the lock is written in batches; each step is DVC's own (`changed`,
`restore`, `remove_outs`, `save`, `commit`, `dump_stages`), in the order of `Stage.reproduce`, so
that `dvc repro` finds nothing to do afterwards. A run that dies between two batches loses nothing:
every result is in DVC's run cache, and the next run restores it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from pipeline.runner.task import Outcome, Task, task_of
from pipeline.study.execution import checked

FILE = "dvc.yaml"
CHECK = "check"  # validates params.yaml, as `espalier run` has done before it comes here


class DvcProject:
    """The stages of `dvc.yaml` in the working folder.

    Raises:
        RuntimeError: the folder has no DVC project, or another DVC command holds its lock.
    """

    def __init__(self) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.repo.index import Index

        logging.getLogger("dvc").setLevel(logging.ERROR)
        _parse_params_once()
        try:
            self._repo: Any = Repo()
            index = Index.from_file(self._repo, FILE)
            self._graph = index.graph
        except DvcException as error:
            raise RuntimeError(f"{Path.cwd()}: DVC says: {error}") from error
        self._stages: dict[str, Any] = {stage.addressing: stage for stage in index.stages}
        self._finished: list[Any] = []
        if CHECK in self._stages:
            checked.confirm()

    def tasks(self) -> Mapping[str, Task]:
        """All stages of the study by name, without `check`."""
        found = {}
        for name, stage in self._stages.items():
            if name == CHECK:
                continue
            after = {s.addressing for s in self._graph.successors(stage)} - {CHECK}
            found[name] = task_of(name, stage.cmd, frozenset(after))
        return found

    def unchanged(self, names: Iterable[str]) -> bool:
        """Whether `dvc repro` would skip all of these stages."""
        with self._locked(FILE):
            return not any(self._stages[name].changed() for name in names)

    def begin(self, name: str) -> Outcome | None:
        """What `dvc repro` does before it runs a stage: nothing where it is up to date, a restored
        result where the run cache has one, else outputs removed and dependencies hashed."""
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self._stages[name]
        if stage.always_changed:
            self.flush()  # it compares the records with dvc.lock
        with self._locked(name):
            if not stage.changed():
                return Outcome.UNCHANGED
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                stage.save_deps()
                return None
            self._take(stage)
            return Outcome.RESTORED

    def done(self, name: str) -> None:
        """Hash and cache the outputs of a finished stage.

        Raises:
            RuntimeError: a dependency changed while the stage ran, or an output is missing.
        """
        stage = self._stages[name]
        with self._locked(name):
            changed = [str(dep) for dep in stage.deps if dep.workspace_status()]
            if changed:
                raise RuntimeError(
                    f"{name}: {', '.join(changed[:3])} changed while it ran; its result was not "
                    "accepted: run again"
                )
            self._take(stage)

    def flush(self) -> None:
        """Write everything accepted so far into dvc.lock, at once."""
        if not self._finished:
            return
        with self._locked(FILE):
            if (check := self._stages.get(CHECK)) is not None:  # or `dvc repro` would add it later
                check.save(run_cache=False)
                self._finished.append(check)
            self._finished[0].dvcfile.dump_stages(self._finished, update_pipeline=False)
        self._finished = []

    def _take(self, stage: Any) -> None:
        """`Stage.run` after the command."""
        plain = any(not (o.use_cache or o.is_metric or o.is_plot) for o in stage.outs)
        stage.save(run_cache=not plain)
        stage.commit()
        self._finished.append(stage)

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        try:
            with self._repo.lock:
                yield
                _drop_trees()
        except LockError as error:
            raise RuntimeError(f"{what}: another DVC command is running here: {error}") from error
        except DvcException as error:
            raise RuntimeError(f"{what}: DVC says: {error}") from error


def _drop_trees() -> None:
    """Empty fsspec's file system in memory. DVC writes the tree of each folder that it hashed there
    and removes none, and each look-up in it reads all names: without this a stage costs more the
    more stages went before. Between two operations nothing refers to a tree there."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def _parse_params_once() -> None:
    """DVC parses the whole of params.yaml several times per stage and searches it for each key:
    parse it once per version of the file and look keys up."""
    from dvc.dependency import param

    if not isinstance(param.read_param_file, ParamReader):
        param.read_param_file = ParamReader(param.read_param_file)


class ParamReader:
    """DVC's `read_param_file` with the same answers.

    Args:
        read: DVC's function.
    """

    def __init__(self, read: Any) -> None:
        self._read = read
        self._parsed: dict[str, tuple[tuple[int, int, int], Any]] = {}

    def __call__(
        self, fs: Any, path: str, key_paths: Any = None, flatten: bool = False, **more: Any
    ) -> Any:
        if fs.protocol != "local" or not flatten or not key_paths or more:
            return self._read(fs, path, key_paths, flatten, **more)
        stat = Path(path).stat()
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._parsed.get(path, (None,))[0] != version:
            self._parsed[path] = version, self._read(fs, path)
        found = {}
        for key in key_paths:
            value = self._parsed[path][1]
            for name in key.split("."):
                if not isinstance(value, dict) or name not in value:  # a list, a pattern, absent
                    return self._read(fs, path, key_paths, flatten)
                value = value[name]
            found[key] = deepcopy(value)
        return found
