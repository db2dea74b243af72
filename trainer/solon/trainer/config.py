"""The configuration of a run: one frozen tree, from YAML and ``key.path=value`` overrides.

There is one set of defaults, in the classes; a YAML file overrides a few of them. Everything is
checked here, before anything heavy is loaded: this module imports no torch, gRPC or pyarrow.
Knows nothing of what a stage does with its part.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from solon.constitution import names as constitution_names
from solon.trainer import methods
from solon.trainer.errors import ConfigError
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.prompt_settings import SANDBOX, PromptsConfig, PromptSource, is_file
from solon.trainer.settings import Settings
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.stages.preference_settings import PreferencesConfig
from solon.trainer.stages.preflight_settings import PreflightConfig
from solon.trainer.stages.settings import (
    EvaluateConfig,
    RevisionsConfig,
    ServicesConfig,
    StoreConfig,
)
from solon.trainer.steps import MOST_ITERATIONS
from solon.trainer.training import DpoConfig, RewardConfig, SftConfig
from solon.trainer.yaml_source import KeyPath, YamlSource, override, parse

SAVED_NAME = "config.yaml"
"""The resolved configuration's name in a run directory."""
SANDBOX_MODEL = "sandbox"
"""Stands for the model that ships with Solon."""
LABELLED_NAMES = ("written", "sandbox")
"""Labelled responses that are not of a file."""
OPERATIONAL: dict[str, Any] = {
    "run_dir": True,
    "stages": True,
    "services": True,
    "store": True,
    "preflight": {"mode", "min_auc", "max_missed", "max_false_alarms"},
    "revisions": {"max_unusable_share"},
    "preferences": {
        "max_unusable_share": True,
        "max_no_verdict_share": True,
        "max_position_bias": True,
        "max_dropped_share": True,
        "panel": {"max_failed_share"},
    },
    "rl": {"reward": {"max_unscored_share"}},
}
"""Keys that change no result, and so may differ when a run is resumed."""

_PACKAGED = Path(__file__).with_name("configs")
_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"


class ModelsConfig(Settings):
    """The models: directories in Hugging Face format, names on the hub, or ``sandbox``."""

    policy: str
    """The helpful model that answers first, and whose harmlessness is to be improved."""
    critic: str
    """Critiques and revises. Usually the policy, or a stronger model."""
    judge: str
    """Compares. Usually the policy, or a stronger model; apart from the model that is trained."""
    base_for_sft: str
    """What supervised fine-tuning starts from; in the paper the pre-trained model."""


class RunConfig(Settings):
    """Everything that decides a run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every draw of the run derives from it, 0 to 2**63 - 1."""
    stages: tuple[Stage, ...] = Field(default=STAGES, min_length=1)
    """What ``solon run`` runs, in the order of a run, such as ``[revisions, sft]``; what is left
    out another command, configuration or machine can do in the same run directory."""
    iterations: int = Field(default=1, ge=1, le=MOST_ITERATIONS)
    """How often ``preferences``, ``reward`` and ``rl`` are run one after the other, 1 to 8. From
    the second time on not the SL model but the RL model of the time before answers the prompts, the
    same ones with other seeds; a reward model is trained on the pairs of all iterations so far; and
    RL starts from the SL model again, which stays the reference of its KL (iterated online RLHF,
    Bai et al. 2022a, 2204.05862, section 4.5: new comparisons are mixed with those there are, and
    new models trained). With ``rl.algorithm: dpo`` the last model goes on learning, from its own
    pairs alone, kept close to what it was (as in Yuan et al. 2024, 2401.10020, section 2.4).
    Folders and models of a later iteration have its number: ``preferences-2``, ``models/rl-2``."""
    run_dir: str | None = None
    """Where the run is written: a path or an fsspec URL. None: ``runs/`` and the config's name."""
    constitution: str
    """A shipped constitution's name or a YAML file."""
    models: ModelsConfig
    """Which models play which role."""
    services: ServicesConfig = ServicesConfig()
    """Where the services are or how they are started; changes no result."""
    store: StoreConfig = StoreConfig()
    """How often records are written; changes no result."""
    prompts: PromptsConfig = PromptsConfig()
    """Where prompts come from."""
    preflight: PreflightConfig = PreflightConfig()
    """The stage that measures, before all others, whether the critic can see harm."""
    revisions: RevisionsConfig = RevisionsConfig()
    """The stage that writes critiques and revisions."""
    sft: SftConfig = SftConfig()
    """The stage that fine-tunes on revisions."""
    preferences: PreferencesConfig = PreferencesConfig()
    """The stage that has pairs of responses judged."""
    reward: RewardConfig = RewardConfig()
    """The stage that trains the preference model."""
    rl: PPOConfig = PPOConfig()
    """The stage of reinforcement learning."""
    dpo: DpoConfig = DpoConfig()
    """That stage with ``rl.algorithm: dpo``, which has nothing else of ``rl``."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The stage that measures."""

    @field_validator("stages")
    @classmethod
    def _in_the_order_of_a_run(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(stage for stage in STAGES if stage in stages)

    @model_validator(mode="after")
    def _iterations_have_pairs_of_their_own(self) -> RunConfig:
        if self.iterations == 1:
            return self
        if self.rl.algorithm != "dpo" and not self.rl.has_reward_model:
            raise ValueError(
                "iterations: expected 1 with rl.reward.model 0, since the judge then scores every "
                "response while the policy learns, and pairs of its responses would teach nobody; "
                f"got {self.iterations!r}"
            )
        if self.preferences.source == "revisions":
            raise ValueError(
                "iterations: expected 1 with preferences.source 'revisions', which are the same in "
                f"every iteration; got {self.iterations!r}: compare samples, or both"
            )
        return self

    @model_validator(mode="after")
    def _given_comparisons_have_a_share(self) -> RunConfig:
        share = self.preferences.given.share
        if bool(share) != bool(self.prompts.comparisons):
            raise ValueError(
                f"preferences.given.share is {share!r}, and prompts.comparisons has "
                f"{len(self.prompts.comparisons)} sources: give both, or neither"
            )
        return self

    @model_validator(mode="after")
    def _services_of_the_panel_have_a_judge(self) -> RunConfig:
        judges = self.preferences.panel.judges if self.preferences.panel else {}
        for name in self.services.panel:
            if name not in judges:
                raise ValueError(
                    f"services.panel.{name}: expected a judge of preferences.panel.judges, which "
                    f"are {', '.join(judges) or 'none'}; add it there with its model, or remove it"
                )
        return self

    @model_validator(mode="after")
    def _a_value_head_is_beside_the_reward_model(self) -> RunConfig:
        has_head = self.rl.has_value_network and self.rl.value_network == "head"
        if has_head and self.services.reward_device is not None:
            raise ValueError(
                "services.reward_device: expected null with rl.value_network 'head', which stands "
                f"on the reward model beside the policy, got {self.services.reward_device!r}; set "
                "rl.value_network to 'full'"
            )
        return self

    @model_validator(mode="after")
    def _each_process_has_its_reward_model(self) -> RunConfig:
        if self.rl.processes > 1 and self.services.reward_device is not None:
            raise ValueError(
                f"services.reward_device: expected null with rl.processes={self.rl.processes}, "
                "each of which has the reward model on its own device, got "
                f"{self.services.reward_device!r}"
            )
        return self

    @model_validator(mode="after")
    def _there_are_snapshots_to_measure(self) -> RunConfig:
        if self.evaluate.snapshots and self.rl.snapshots_every is None:
            raise ValueError(
                "evaluate.snapshots: expected false, since rl.snapshots_every keeps none; got true"
            )
        return self

    @model_validator(mode="after")
    def _ground_truth_knows_the_prompts(self) -> RunConfig:
        if self.evaluate.ground_truth is None:
            return self
        evaluation = self.prompts.evaluation
        for kind in ("harmful", "benign", "sounds_dangerous"):
            for source in getattr(evaluation, kind):
                if source.source != SANDBOX + kind:
                    raise ValueError(
                        f"prompts.evaluation.{kind}: evaluate.ground_truth is 'sandbox', whose "
                        f"oracle reads answers to {SANDBOX}{kind} only, got {source.source!r}; "
                        "evaluate other prompts with evaluate.ground_truth=null"
                    )
        return self


def shipped_names() -> tuple[str, ...]:
    """The configurations that come with Solon, in alphabetical order."""
    return tuple(sorted(path.stem for path in shipped_directory().glob("*.yaml")))


def load_config(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    layers: Sequence[tuple[str, Sequence[str]]] = (),
) -> RunConfig:
    """Read, override and check a configuration.

    Args:
        name_or_path: A shipped name, a YAML file, or a run directory (its saved configuration).
        overrides: ``key.path=value`` assignments, with YAML values.
        layers: More of them, with where they come from; they come before the others.

    Raises:
        ConfigError: Every problem at once, a line each: place, key, value, fix.
    """
    if "://" in name_or_path:
        return _load_saved(name_or_path, overrides)
    path = _find(name_or_path)
    source = parse(_read(path), str(path))
    for place, assignments in layers:
        source = override(source, assignments, place=place)
    config = validate(override(source, overrides))
    if path.name == SAVED_NAME:
        config = config.model_copy(update={"run_dir": str(path.parent)})
    elif config.run_dir is None:
        config = config.model_copy(update={"run_dir": f"runs/{path.stem}"})
    return _with_absolute_paths(config)


def load_run_config(run_dir: str | Path) -> RunConfig:
    """The configuration that a run directory was made with.

    Raises:
        ConfigError: It has none, or one that this version cannot read.
    """
    path = Path(run_dir) / SAVED_NAME
    return validate(parse(_read(path), str(path)))


def validate(source: YamlSource) -> RunConfig:
    """Check parsed YAML, on the method that its key ``base`` names.

    Raises:
        ConfigError: As ``load_config``.
    """
    source = methods.extend(source, shipped_directory() / "methods")
    try:
        return RunConfig.model_validate(source.data)
    except ValidationError as error:
        lines = [_sentence(source, problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def to_yaml(config: RunConfig, *, defaults: bool = True) -> str:
    """As YAML that ``load_config`` reads: the whole tree, or what differs from the defaults."""
    tree = config.model_dump(mode="json", exclude_defaults=not defaults)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def differences(before: RunConfig, after: RunConfig) -> list[str]:
    """``key: old -> new`` for every value that differs and can change a result."""
    ours = before.model_dump(mode="json", exclude=OPERATIONAL)
    theirs = after.model_dump(mode="json", exclude=OPERATIONAL)
    return [f"{key}: {old!r} -> {new!r}" for key, old, new in _changes("", ours, theirs)]


def model_source(name: str) -> str:
    """The path or hub name to load a model from: ``sandbox`` is the model that ships.

    Raises:
        FileNotFoundError: The shipped model is missing from this installation.
    """
    if name != SANDBOX_MODEL:
        return name
    from solon import sandbox  # noqa: PLC0415 - the config tree does not need it

    return str(sandbox.model_path())


def _load_saved(url: str, overrides: Sequence[str]) -> RunConfig:
    from solon.trainer.storage import Storage  # noqa: PLC0415 - files need no fsspec

    storage = Storage(url)
    if not storage.exists(SAVED_NAME):
        raise ConfigError(f"{url}: expected a run directory, but it has no {SAVED_NAME}")
    text = storage.read(SAVED_NAME).decode()
    config = validate(override(parse(text, f"{url}/{SAVED_NAME}"), overrides))
    return config.model_copy(update={"run_dir": url})


def shipped_directory() -> Path:
    """Where the configurations are that come with Solon."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_dir() and (path / SAVED_NAME).exists():
        return path / SAVED_NAME
    if path.is_file():
        return path
    names = shipped_names()
    if name_or_path in names:
        return shipped_directory() / f"{name_or_path}.yaml"
    if name_or_path in methods.names(shipped_directory() / "methods"):
        raise ConfigError(
            f"{name_or_path!r} is a method, which has neither models nor prompts: write a file "
            f"that names them, and `base: {name_or_path}` at its top"
        )
    close = difflib.get_close_matches(path.stem, names, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    what = "is a directory without a config.yaml" if path.is_dir() else "does not exist"
    raise ConfigError(
        f"expected a configuration file, a run directory or one of the shipped "
        f"{', '.join(names)}; {name_or_path!r} {what}.{meant}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; is {path.parent} a run directory?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A run may be resumed from another working directory, so it keeps no relative path."""
    models = {
        role: _absolute(name, names=(SANDBOX_MODEL,))
        for role, name in config.models.model_dump().items()
    }
    data = config.model_dump()
    data["models"] = models
    data["constitution"] = _absolute(config.constitution, names=constitution_names())
    data["preflight"]["source"] = _absolute(config.preflight.source, names=LABELLED_NAMES)
    data["prompts"] = _absolute_sources(data["prompts"])
    if config.preferences.panel:
        data["preferences"]["panel"]["judges"] = {
            name: _absolute(model, names=(SANDBOX_MODEL,))
            for name, model in config.preferences.panel.judges.items()
        }
    services = [data["services"][role] for role in models.keys() & data["services"].keys()]
    for service in [*services, *data["services"]["panel"].values()]:
        for file in ("ca", "certificate", "key"):
            if (service["tls"] or {}).get(file):
                service["tls"][file] = str(Path(service["tls"][file]).expanduser().absolute())
    data["run_dir"] = absolute_run_dir(config.run_dir) if config.run_dir else None
    return RunConfig.model_validate(data)


def absolute_run_dir(run_dir: str) -> str:
    """A run directory that does not depend on the working directory; URLs stay as they are."""
    return run_dir if "://" in run_dir else str(Path(run_dir).expanduser().absolute())


def _absolute(name_or_path: str, *, names: Sequence[str]) -> str:
    path = Path(name_or_path).expanduser()
    is_path = name_or_path.startswith((".", "/", "~")) or path.suffix in {".yaml", ".yml"}
    if name_or_path not in names and (is_path or path.exists()):
        return str(path.absolute())
    return name_or_path


def _absolute_sources(prompts: Any) -> Any:
    if isinstance(prompts, list | tuple):
        return [_absolute_sources(item) for item in prompts]
    if not isinstance(prompts, dict):
        return prompts
    made = {key: _absolute_sources(value) for key, value in prompts.items()}
    source = made.get("source")
    if isinstance(source, str) and is_file(source) and "://" not in source:
        made["source"] = str(Path(source).expanduser().absolute())
    return made


def _changes(prefix: str, before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[tuple[str, Any, Any]] = []
        for key in before.keys() | after.keys():
            dotted = f"{prefix}.{key}" if prefix else key
            found += _changes(dotted, before.get(key), after.get(key))
        return sorted(found, key=lambda change: change[0])
    return [] if before == after else [(prefix, before, after)]


def _sentence(source: YamlSource, problem: Mapping[str, Any]) -> str:
    path: KeyPath = tuple(problem["loc"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{source.place(path)}: {_unknown_key(path)}"
    path = _known_part(path)
    place, key = source.place(path), _dotted(path)
    if kind == "missing":
        return f"{place}: {key}: expected a value, but the key is missing{_help(path)}"
    what = str(problem["msg"]).removeprefix("Value error, ")
    head = f"{place}: {key}: " if key else f"{place}: "
    if kind == "value_error":
        return head + what
    what = _EXPECTED.get(kind, what.replace("Input should be", "expected"))
    return f"{head}{what}, got {problem['input']!r}{_help(path)}"


_EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "model_type": "expected a mapping of keys to values",
    "model_attributes_type": "expected a mapping of keys to values",
    "dict_type": "expected a mapping of keys to values",
    "tuple_type": "expected a list",
}
"""pydantic's error type -> what a person who writes YAML would say."""


def _known_part(path: KeyPath) -> KeyPath:
    """Without pydantic's own suffixes, which name the alternatives of a union."""
    for length in range(1, len(path)):
        fields = _fields_at(path[: length - 1])
        last = path[length - 1]
        if isinstance(last, str) and last in fields and not _fields_at(path[:length]):
            return path[:length] if isinstance(path[length], str) else path
    return path


def _unknown_key(path: KeyPath) -> str:
    known = list(_fields_at(path[:-1]))
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    where = _dotted(path[:-1]) or "the top"
    return f"{_dotted(path)}: unknown key; {meant}keys at {where}: {', '.join(known)}"


def _help(path: KeyPath) -> str:
    """The field's own documentation, which has its unit and range."""
    field = _fields_at(path[:-1]).get(str(path[-1])) if path else None
    return f" ({' '.join(field.split())})" if field else ""


def _fields_at(path: KeyPath) -> dict[str, str | None]:
    """Names and documentation of the keys at a path; empty where there are none to know."""
    holder: type[BaseModel] | None = RunConfig
    for part in path:
        if isinstance(part, int) or holder is None:
            continue
        field = holder.model_fields.get(part)
        holder = model_in(field.annotation) if field else None
    return {name: f.description for name, f in holder.model_fields.items()} if holder else {}


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it optional or in a list; None if it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


__all__ = ["ModelsConfig", "PromptSource", "RunConfig", "load_config", "load_run_config"]
