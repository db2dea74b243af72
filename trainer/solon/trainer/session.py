"""Opening a run directory: new, or to go on with; locked, with the configuration that made it.

Knows nothing of what is run in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from solon.constitution import Constitution, load, loads, resolve
from solon.trainer.config import SAVED_NAME, RunConfig, differences, to_yaml, validate
from solon.trainer.errors import RunDirectoryError
from solon.trainer.lock import LOCK_NAME, exclusive
from solon.trainer.store import RunDirectory
from solon.trainer.yaml_source import parse

CONSTITUTION_NAME = "constitution.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run directory that is this process's for the time being."""

    run: RunDirectory
    config: RunConfig
    constitution: Constitution


@contextmanager
def open_session(config: RunConfig, *, resume: bool) -> Iterator[Session]:
    """Make the run directory, or go on with one that is there.

    Args:
        config: The configuration; ``run_dir`` is set.
        resume: Whether a run may be there already.

    Raises:
        RunDirectoryError: One is there and may not be; it is in use; or it was made with another
            configuration or constitution.
        ConstitutionError: The constitution cannot be used.
        StoreError: The directory cannot be written.
    """
    constitution = load(resolve(config.constitution))
    assert config.run_dir is not None, "load_config sets it"
    run = RunDirectory(config.run_dir)
    check_place(run, resume=resume)
    with exclusive(run.storage):
        if run.storage.exists(SAVED_NAME):
            _require_same(run, config, constitution)
            run.remove_leftovers()
        else:
            source = Path(resolve(config.constitution)).read_bytes()
            run.storage.write(CONSTITUTION_NAME, source)
        # last, since it is what makes the directory a run
        run.storage.write(SAVED_NAME, to_yaml(config).encode())
        yield Session(run=run, config=config, constitution=constitution)


def check_place(run: RunDirectory, *, resume: bool) -> None:
    """Hold that a run may be made, or gone on with, in this directory.

    Raises:
        RunDirectoryError: There is a run and may not be, or there are other files.
    """
    _refuse_foreign(run)
    if run.storage.exists(SAVED_NAME) and not resume:
        raise RunDirectoryError(
            f"{run.url}: there is a run in it already. Go on with it: add --resume. Start another: "
            "add --run DIRECTORY"
        )


def saved_config(run: RunDirectory) -> RunConfig:
    """The configuration that a run was made with.

    Raises:
        ConfigError: This version cannot read it.
    """
    text = run.storage.read(SAVED_NAME).decode()
    return validate(parse(text, f"{run.url}/{SAVED_NAME}"))


def saved_constitution(run: RunDirectory) -> Constitution:
    """The constitution that a run was made with.

    Raises:
        ConstitutionError: It cannot be used any more.
    """
    text = run.storage.read(CONSTITUTION_NAME).decode()
    return loads(text, source=f"{run.url}/{CONSTITUTION_NAME}")


def _refuse_foreign(run: RunDirectory) -> None:
    root = run.storage.local_root
    if root is None or not root.exists() or run.storage.exists(SAVED_NAME):
        return
    if not root.is_dir():
        raise RunDirectoryError(f"{root}: expected a directory for the run, got a file")
    # a run that was killed before its configuration was written is no obstacle
    ours = {LOCK_NAME, CONSTITUTION_NAME}
    others = [p.name for p in root.iterdir() if p.name not in ours and ".tmp-" not in p.name]
    if others:
        raise RunDirectoryError(
            f"{root}: holds files that are not a run's, such as {others[0]!r}; choose another "
            "directory with --run"
        )


def _require_same(run: RunDirectory, config: RunConfig, constitution: Constitution) -> None:
    changed = differences(saved_config(run), config)
    if changed:
        listed = "\n  ".join(changed)
        raise RunDirectoryError(
            f"{run.url}: was made with another configuration, so that its records would not fit:"
            f"\n  {listed}\nGo on as it was: `solon run {run.url} --resume`. Use the changes: "
            f"start another run with --run DIRECTORY; --reuse {run.url} takes over what they leave "
            "as it is"
        )
    kept = saved_constitution(run)
    if kept.digest != constitution.digest:
        raise RunDirectoryError(
            f"{run.url}: was made with another version of the constitution "
            f"{config.constitution!r} (digest {kept.digest[:12]}, now {constitution.digest[:12]}); "
            f"a copy is in {run.url}/{CONSTITUTION_NAME}. Restore it, or start another run with "
            "--run DIRECTORY"
        )
