"""``solon status``, ``critique`` and ``judge``: one question to services that run already.

For people at a terminal, and with ``--json`` for scripts. Knows nothing of runs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solon.chat import Conversation
    from solon.client import Comparison, RefinedRound, Score
    from solon.client.requests import ConstitutionRef

TOKEN_VARIABLE = "SOLON_TOKEN"
"""The environment variable that holds the bearer token."""

COMMANDS = ("status", "critique", "judge")


def add_parsers(commands: Any) -> None:
    """Add the commands to the ``solon`` parser's."""
    status = commands.add_parser(
        "status", allow_abbrev=False, help="what services run, and how busy they are"
    )
    status.add_argument("addresses", metavar="HOST:PORT", nargs="+", help="one replica each")
    add_connection(status, timeout=10.0)

    critique = commands.add_parser(
        "critique", allow_abbrev=False, help="have a running critic critique and revise a response"
    )
    _add_question(critique)
    critique.add_argument("--response", required=True, metavar="TEXT", help="what is criticised")
    critique.add_argument("--rounds", type=int, default=1, metavar="N", help="1 to 8; default 1")
    critique.add_argument("--seed", type=int, help="repeats the draws of principles and texts")

    judge = commands.add_parser(
        "judge", allow_abbrev=False, help="have a running judge compare two responses, or score one"
    )
    _add_question(judge)
    judge.add_argument("--a", required=True, metavar="TEXT", help="a response")
    judge.add_argument("--b", metavar="TEXT", help="another; without it the first is scored")


def run(options: argparse.Namespace) -> int:
    """Run one of the commands; returns the exit code.

    Raises:
        SolonError: The call failed.
        CallError: An argument is wrong.
    """
    commands = {"status": _status, "critique": _critique, "judge": _judge}
    work: Coroutine[Any, Any, int] = commands[options.command](options)
    return asyncio.run(work)


def add_connection(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Add what a call needs to reach a service, and ``--json``."""
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON")
    add("--timeout", type=float, default=timeout, metavar="S", help=f"seconds; default {timeout:g}")
    add("--tls", action="store_true", help="encrypt, and trust public authorities")
    add("--tls-ca", type=Path, metavar="PEM", help="encrypt, and trust this authority")
    add("--tls-certificate", type=Path, metavar="PEM", help="your own certificate")
    add("--tls-key", type=Path, metavar="PEM", help="its key")
    add("--server-name", metavar="NAME", help="the name in the server's certificate")
    # as the other commands have them: overrides of a configuration, of which there is none here
    parser.set_defaults(overrides=[])


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="HOST:PORT", help="where the service is")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="what the human said")
    asked.add_argument(
        "--conversation",
        type=Path,
        metavar="FILE",
        help='what was said, as JSON: [{"role": "user", "content": "..."}, ...]; - is stdin',
    )
    parser.add_argument(
        "--constitution",
        required=True,
        metavar="NAME_OR_FILE",
        help="a name that the service knows, or a YAML file of yours",
    )
    parser.add_argument(
        "--principle",
        dest="principles",
        action="append",
        metavar="ID",
        help="judge by this one (repeatable; default: all; a critic draws one a round)",
    )
    add_connection(parser, timeout=120.0)


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a client, as the options have them."""
    from solon.client import Tls  # noqa: PLC0415

    files = {
        "ca": options.tls_ca,
        "certificate": options.tls_certificate,
        "key": options.tls_key,
        "server_name": options.server_name,
    }
    encrypted = options.tls or any(files.values())
    return {
        "timeout": options.timeout,
        "retry_for": 0.0,
        "tls": Tls(**files) if encrypted else None,
        "token": os.environ.get(TOKEN_VARIABLE) or None,
    }


def _asked(options: argparse.Namespace) -> Conversation:
    from solon.chat import Conversation  # noqa: PLC0415
    from solon.trainer.errors import CallError  # noqa: PLC0415

    if options.prompt is not None:
        return Conversation.from_user(options.prompt)
    name = str(options.conversation)
    try:
        text = sys.stdin.read() if name == "-" else options.conversation.read_text("utf-8")
        return Conversation.from_dicts(json.loads(text))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CallError(
            f"--conversation: {name!r}: expected JSON such as "
            f'[{{"role": "user", "content": "..."}}], got: {error}'
        ) from error


def constitution_ref(name_or_file: str) -> ConstitutionRef:
    """A name for the service to look up; a file of ours goes with the call."""
    if Path(name_or_file).suffix not in (".yaml", ".yml"):
        return name_or_file
    from solon.constitution import load, resolve  # noqa: PLC0415
    from solon.trainer.inline import inline  # noqa: PLC0415

    return inline(load(resolve(name_or_file)))


async def _status(options: argparse.Namespace) -> int:
    found = await asyncio.gather(*(_look(address, options) for address in options.addresses))
    if options.json:
        print_json(found)
    else:
        _print_status(found)
    return 0 if all(one["health"] == "SERVING" for one in found) else 1


async def _look(address: str, options: argparse.Namespace) -> dict[str, Any]:
    from solon.client import ControlClient, SolonError  # noqa: PLC0415

    seen: dict[str, Any] = {"address": address, "health": "SERVING", "error": None}
    async with ControlClient(address, **connection(options)) as control:
        try:
            await control.wait_until_serving(timeout=0)
        except SolonError as error:
            seen |= {"health": "NOT_SERVING", "error": str(error)}
        try:
            info, load = await asyncio.gather(control.get_server_info(), control.get_load())
        except SolonError as error:
            seen["error"] = seen["error"] or str(error)
        else:
            seen |= {"info": dataclasses.asdict(info), "load": dataclasses.asdict(load)}
    return seen


def _print_status(found: list[dict[str, Any]]) -> None:
    width = max(len(one["address"]) for one in found)
    for one in found:
        info, load = one.get("info"), one.get("load")
        role = info["service_role"] if info else ""
        print(f"{one['address']:<{width}}  {role:<6}  {one['health']}")
        if one["error"]:
            print(f"  error    {one['error']}")
        if info and load:
            paused = ", paused" if load["paused"] else ""
            names = ", ".join(c["name"] for c in info["constitutions"]) or "none by name"
            print(f"  model    {info['model'] or '-'} ({info['engine']})")
            print(f"  weights  {info['weight_version']}")
            print(f"  load     {_load(load)}{paused}")
            print(f"  knows    {names}")
            print(f"  up       {_duration(datetime.now(UTC) - info['start_time'])}")


def _load(load: Mapping[str, Any]) -> str:
    return f"{load['running']} running, {load['queued']} of {load['queue_capacity']} waiting"


def _duration(delta: timedelta) -> str:
    minutes, seconds = divmod(int(delta.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    told = [f"{amount} {unit}" for amount, unit in parts if amount]
    return " ".join(told[:2]) or "0 s"


async def _critique(options: argparse.Namespace) -> int:
    from solon.client import CriticClient, Sampling  # noqa: PLC0415

    asked, constitution = _asked(options), constitution_ref(options.constitution)
    async with CriticClient(options.address, **connection(options)) as critic:
        rounds: list[RefinedRound] = []
        async for made in critic.refine(
            asked,
            options.response,
            constitution=constitution,
            rounds=len(options.principles) if options.principles else options.rounds,
            principle_ids=options.principles,
            principle_seed=None if options.principles else options.seed,
            sampling=Sampling(seed=options.seed),
        ):
            rounds.append(made)
            if not options.json:
                _print_round(made)
    if options.json:
        print_json([dataclasses.asdict(made) for made in rounds])
    return 0


def _print_round(made: RefinedRound) -> None:
    print(f"Round {made.round}, by {made.principle_id}")
    if made.revision is None:
        print(f"  {made.revision_outcome}: nothing to criticise")
    for answer in made.answers:
        said = "" if answer.outcome == "made" else f" ({answer.outcome})"
        print(f"  {answer.number}. {answer.question}{said} {answer.answer.text}")
    for name, text, outcome in (
        ("critique", made.critique, made.critique_outcome),
        ("revision", made.revision, made.revision_outcome),
    ):
        if text is not None:
            said = "" if outcome == "made" else f" ({outcome})"
            print(f"  {name}{said}: {text.text}")


async def _judge(options: argparse.Namespace) -> int:
    from solon.client import JudgeClient  # noqa: PLC0415

    asked, constitution = _asked(options), constitution_ref(options.constitution)
    chosen: dict[str, Any] = {
        "constitution": constitution,
        "principle_ids": options.principles,
    }
    async with JudgeClient(options.address, **connection(options)) as judge:
        verdict: Comparison | Score
        if options.b is None:
            verdict = score = await judge.score(asked, options.a, **chosen)
            lines = _score_lines(score)
        else:
            verdict = compared = await judge.compare(asked, options.a, options.b, **chosen)
            lines = _comparison_lines(compared)
    if options.json:
        print_json(dataclasses.asdict(verdict))
    else:
        print("\n".join(lines))
    return 0


def _comparison_lines(verdict: Comparison) -> list[str]:
    width = max((len(p.principle_id) for p in verdict.principles), default=0)
    lines = []
    for p in verdict.principles:
        doubt = ", the order decided" if p.position_dependent else ""
        lines.append(
            f"{p.principle_id:<{width}}  {_percent(p.probability_a, p.no_verdict_reason)}{doubt}"
        )
    overall = _percent(verdict.probability_a, verdict.no_verdict_reason)
    if verdict.probability_a is not None:
        overall += f": {'A' if verdict.probability_a > 0.5 else 'B'} is better"
    return ["Probability that A is better", *lines, f"{'overall':<{width}}  {overall}"]


def _score_lines(verdict: Score) -> list[str]:
    width = max((len(p.principle_id) for p in verdict.principles), default=0)
    lines = [
        f"{p.principle_id:<{width}}  {_number(p.score, p.no_verdict_reason)}"
        for p in verdict.principles
    ]
    overall = _number(verdict.score, verdict.no_verdict_reason)
    return ["Score; higher is better", *lines, f"{'overall':<{width}}  {overall}"]


def _percent(share: float | None, reason: str | None) -> str:
    return f"no verdict ({reason})" if share is None else f"{share:6.1%}"


def _number(value: float | None, reason: str | None) -> str:
    return f"no score ({reason})" if value is None else f"{value:.3f}"


def print_json(value: object) -> None:
    """Print what a client returned."""
    print(json.dumps(value, indent=2, default=_plain, ensure_ascii=False))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
