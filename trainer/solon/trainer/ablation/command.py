"""``solon ablate``: its options, and what happens in which order.

Imports nothing but the standard library until it runs. Knows nothing of how a run is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solon.trainer.ablation.results import Results
    from solon.trainer.ablation.spec import Ablation
    from solon.trainer.ablation.variants import Pace, Plan, Variant
    from solon.trainer.console import RunConsole
    from solon.trainer.storage import Storage

COMMAND = "ablate"
_SAVED = "ablation.yaml"
"""What makes a directory an ablation's: the file that it was made of."""


def add_parser(commands: Any) -> None:
    """Add the command to the ``solon`` parser's."""
    parser = commands.add_parser(
        COMMAND,
        allow_abbrev=False,
        help="variants of a configuration, measured, beside what others have found",
    )
    parser.add_argument(
        "config", metavar="ABLATION", help="a shipped name (sandbox), or a YAML file of rows"
    )
    parser.add_argument(
        "overrides",
        metavar="key.path=value",
        nargs="*",
        default=[],
        help="override a value in all rows",
    )
    parser.add_argument("--seeds", metavar="N,...", help="instead of the file's")
    parser.add_argument("--only", metavar="ROW,...", help="these rows of the file")
    parser.add_argument("--run", metavar="DIR", help="where to write; by default runs/ablate-NAME")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all rows and say what they cost; run nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 if a variant failed."""
    from solon.trainer.ablation.spec import chosen_rows, load_ablation  # noqa: PLC0415
    from solon.trainer.ablation.variants import Pace, Plan, make_variants  # noqa: PLC0415
    from solon.trainer.console import RunConsole  # noqa: PLC0415

    ablation = load_ablation(options.config)
    root = Path(options.run or f"runs/ablate-{ablation.name}").expanduser().resolve()
    chosen = chosen_rows(ablation, _split(options.only))
    seeds = _seeds(options.seeds) or ablation.config.seeds
    known = make_variants(ablation, root, seeds=seeds, overrides=options.overrides)
    variants = [variant for variant in known if variant.row in chosen]
    console = RunConsole()
    plan, pace = Plan(variants), Pace(ablation.config.stage_seconds)
    if options.dry_run:
        for line in _cost(ablation, variants, plan, pace, ()):
            console.result(line)
        return 0
    others = [variant for variant in known if variant.row not in chosen]
    work = _Work(
        ablation=ablation, root=root, variants=variants, others=others, plan=plan, pace=pace
    )
    return work.run(console, resume=options.resume)


class _Work:
    """One call of the command, once all that was asked is known to make sense."""

    def __init__(
        self,
        *,
        ablation: Ablation,
        root: Path,
        variants: Sequence[Variant],
        others: Sequence[Variant],
        plan: Plan,
        pace: Pace,
    ) -> None:
        """``others``: rows that were not asked for now; those that are done are shown, too."""
        self._ablation, self._root, self._variants = ablation, root, variants
        self._others, self._plan, self._pace = others, plan, pace

    def run(self, console: RunConsole, *, resume: bool) -> int:
        from solon.trainer.ablation.results import Results  # noqa: PLC0415
        from solon.trainer.ablation.variants import is_done  # noqa: PLC0415
        from solon.trainer.lock import exclusive  # noqa: PLC0415
        from solon.trainer.storage import Storage  # noqa: PLC0415

        storage = Storage(str(self._root))
        _refuse(storage, resume=resume)
        with exclusive(storage):
            self._save(storage)
            others = [one for one in self._others if is_done(one)]
            results = Results(self._ablation, [*self._variants, *others])
            left = [one for one in self._variants if one.name not in results.done]
            done = [one for one in self._variants if one.name in results.done]
            for variant in (*done, *others):
                self._pace.learn(variant)
            names = [one.name for one in done]
            for line in _cost(self._ablation, self._variants, self._plan, self._pace, names):
                console.say(line)
            if left:
                asyncio.run(self._make(left, results, console, storage))
            _write(storage, results)
            _show(console, results, self._root)
        return 1 if results.failed else 0

    def _save(self, storage: Storage) -> None:
        import yaml  # noqa: PLC0415

        whole = self._ablation.config.model_dump(mode="json", by_alias=True)
        text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
        storage.write(_SAVED, text.encode())

    async def _make(
        self, left: Sequence[Variant], results: Results, console: RunConsole, storage: Storage
    ) -> None:
        from solon.trainer.ablation.runner import Failure, run_variants  # noqa: PLC0415

        task = asyncio.current_task()
        assert task is not None, "asyncio.run has made it"
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

        def on_end(variant: Variant, failure: Failure | None) -> None:
            results.add(variant, failure)
            if failure is None:
                self._pace.learn(variant)
            _write(storage, results)
            done = [one.name for one in self._variants if one.name in results.done]
            seconds = self._pace.seconds(self._plan.left(done))
            ended = len(done) + results.failed
            console.say(f"--- {ended} of {len(self._variants)} runs have ended{_about(seconds)}")

        known = [*self._variants, *self._others]
        await run_variants(left, known, console, log_dir=self._root / "logs", on_end=on_end)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _seeds(text: str | None) -> tuple[int, ...]:
    from solon.trainer.ablation.spec import MOST_SEEDS  # noqa: PLC0415
    from solon.trainer.errors import ConfigError  # noqa: PLC0415

    parts = _split(text)
    fits = all(part.isdecimal() for part in parts) and len(set(parts)) == len(parts)
    if not fits or len(parts) > MOST_SEEDS:
        raise ConfigError(
            f"--seeds: expected 1 to {MOST_SEEDS} different whole numbers with commas between "
            f"them, such as 0,1,2; got {text!r}"
        )
    return tuple(map(int, parts))


def _refuse(storage: Storage, *, resume: bool) -> None:
    from solon.trainer.errors import RunDirectoryError  # noqa: PLC0415
    from solon.trainer.lock import LOCK_NAME  # noqa: PLC0415

    root = storage.url
    if storage.exists(_SAVED):
        if not resume:
            raise RunDirectoryError(
                f"{root}: there is an ablation in it already. Go on with it: add --resume. Start "
                "another: add --run DIRECTORY"
            )
    elif Path(root).exists() and set(os.listdir(root)) - {LOCK_NAME}:
        raise RunDirectoryError(
            f"{root}: holds files that are not an ablation's; choose another directory with --run"
        )


def _cost(
    ablation: Ablation,
    variants: Sequence[Variant],
    plan: Plan,
    pace: Pace,
    done: Sequence[str],
) -> Iterator[str]:
    from solon.trainer.stage_names import STAGES  # noqa: PLC0415

    left = plan.left(done)
    rows, seeds = ({one.row for one in variants}, sorted({one.seed for one in variants}))
    yield (
        f"{ablation.name}: rows {len(rows)}, seeds {', '.join(map(str, seeds))}: {len(variants)} "
        f"runs, of which {len(done)} are done. Of their {plan.stages} stages these are left, "
        "each made once for all runs that share it:"
    )
    for stage in STAGES:
        if left[stage]:
            what = " (models asked)" if stage == "evaluate" else ""
            yield f"  {stage}: {left[stage]}{what}"
    yield f"{sum(left.values())} in all{_about(pace.seconds(left))}"


def _about(seconds: float | None) -> str:
    return "" if seconds is None else f"; about {seconds / 60:.0f} min to go"


def _write(storage: Storage, results: Results) -> None:
    import json  # noqa: PLC0415

    from solon.trainer.ablation.picture import svg  # noqa: PLC0415
    from solon.trainer.ablation.report import markdown  # noqa: PLC0415

    found = results.collect()
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    storage.write("ablation.json", text.encode())
    storage.write("ablation.md", markdown(found).encode())
    storage.write("ablation.svg", svg(found).encode())


def _show(console: RunConsole, results: Results, root: Path) -> None:
    from solon.trainer.ablation.report import RULE, tables  # noqa: PLC0415

    found = results.collect()
    for table in tables(found):
        console.result(table)
    console.result(RULE)
    for name, row in found["rows"].items():
        for seed, failure in row["failures"].items():
            console.result(f"{name}, seed {seed} failed: {failure['kind']}: {failure['text']}")
    console.result(f"Table: {root}/ablation.md  Figures: {root}/ablation.json  Runs: {root}/runs")
