"""The configuration of the services and of the stages that talk to them: revisions, evaluation.

Knows nothing of how a stage works; imports no torch, gRPC or pyarrow, so that a configuration is
checked before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from solon.trainer.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, 0 to 1."""


class SamplingSettings(Settings):
    """How text is drawn from a model."""

    temperature: float = Field(default=1.0, ge=0, le=10)
    """Softmax temperature, 0 to 10; 0 is greedy. The paper draws at 1 (section 3.2)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass, above 0 and up to 1; 1 is off."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Keep only the k likeliest tokens, 0 to 1,000,000; 0 is off."""
    max_tokens: int = Field(default=256, ge=1, le=131_072)
    """Most tokens to make, 1 to 131,072."""


class RevisionsConfig(Settings):
    """Sampling, critique and revision (Bai et al. 2022, section 3.1)."""

    rounds: int = Field(default=4, ge=1, le=8)
    """Rounds of critique and revision for every red-team prompt, 1 to 8. The paper's is 4."""
    principles: Literal["anew", "once", "priority"] = "anew"
    """How the rounds' principles are chosen: drawn ``anew`` for every round with odds by weight
    (the paper's), so drawn but none twice (``once``), or one a round in the order of their
    ``priority`` in the constitution, the same for every prompt (``priority``)."""
    skip_critique: bool = False
    """Revise without critiques (section 3.5 of the paper)."""
    skip_questions: bool = False
    """Write critiques at once, even by principles that have questions to be answered first."""
    not_needed_below: Share | None = None
    """Stop early: a round is not made when the critic gives the response less than this
    probability of breaking the round's principle, 0 to 1, by log-probability. None: every round is
    made. A response that no round changes is trained on as it is."""
    min_option_mass: Share = 0.0
    """Least probability that the critic's answers to that question must hold together for a
    verdict, 0 to 1; 0 is off. Without a verdict the round is made."""
    response: SamplingSettings = SamplingSettings()
    """How the policy's first response is drawn."""
    critic: SamplingSettings = SamplingSettings()
    """How critiques and revisions are drawn."""
    helpful_samples: PositiveInt = 1
    """Responses of the helpful policy for every helpfulness prompt, 1 or more."""
    helpful_share: float | None = Field(default=None, ge=0, lt=1)
    """Most that helpful responses may be of the training examples, 0 and below 1; more of them are
    left out, by a draw that is the same in every run. None: all are trained on."""
    train_rounds: PositiveInt | None = None
    """n of SL-CAI-n: train on revisions of the rounds 1 to n, at most ``rounds``. None: of all
    rounds that there are. Changes no record, so that ``solon run --reuse`` makes none again."""
    train_on: Literal["all", "last"] = "all"
    """Which of those rounds become training examples: ``all`` (the paper's), or the ``last``."""
    max_repetition: Share | None = 0.5
    """Largest share of a revision's or response's word trigrams that were in it before, 0 to 1, for
    it to be trained on: a small model that improves itself may collapse into repetition
    (arXiv 2504.04918). None is off."""
    max_unusable_share: Share = 0.1
    """The stage fails when more than this part of the prompts has an empty, truncated or aborted
    response or revision, 0 to 1."""

    @model_validator(mode="after")
    def _trains_on_rounds_that_are_made(self) -> RevisionsConfig:
        if self.train_rounds is not None and self.train_rounds > self.rounds:
            raise ValueError(
                f"train_rounds: expected at most rounds={self.rounds}, got {self.train_rounds!r}"
            )
        return self


class EvaluateConfig(Settings):
    """What is measured on held-out prompts, for every model of the run."""

    ground_truth: Literal["sandbox"] | None = None
    """``sandbox``: its oracle says what each response is. None: the judge compares the models
    with one another, and nothing is measured against truth."""
    sampling: SamplingSettings = SamplingSettings()
    """How the models' responses are drawn."""
    judge_pairs: NonNegativeInt = 300
    """Pairs of different models' responses on which the judge is measured, 0 or more."""
    snapshots: bool = False
    """Measure the policy on its way, too: the snapshots that ``rl.snapshots_every`` keeps."""


class TlsConfig(Settings):
    """TLS to a running service. The files are PEM."""

    ca: str | None = None
    """Who signs the service's certificate. None: the public authorities."""
    certificate: str | None = None
    """The run's own certificate chain, for a service that demands one."""
    key: str | None = None
    """Its key, unencrypted."""
    server_name: str | None = None
    """The name in the service's certificate, where the address is another."""

    @model_validator(mode="after")
    def _certificate_and_key_belong_together(self) -> TlsConfig:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise ValueError(f"{missing}: a certificate and its key belong together: give both")
        return self


def _as_text(value: object) -> object:
    """A number or a flag as a command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


class ServiceConfig(Settings):
    """One of the three services: where it is, or how to start it."""

    address: str | None = None
    """``host:port`` or another gRPC target of a running service. None: the run starts one."""
    tls: TlsConfig | None = None
    """How to encrypt the way to a running service; ``{}`` trusts the public authorities. None:
    plain text."""
    token_env: str | None = Field(default=None, min_length=1)
    """Name of the environment variable that holds the bearer token of a running service; the token
    itself is never written. The policy's needs the scope control, too, since a run replaces its
    weights."""
    allow_plain_token: bool = False
    """Show the token without TLS to another machine, too: for networks that encrypt themselves."""
    engine: str = "transformers"
    """Engine of a service that the run starts: transformers, openai (for critic and judges: any
    endpoint that speaks OpenAI's API, by ``engine_options``), or scripted."""
    threads: PositiveInt | None = None
    """CPU threads of a service that the run starts, 1 or more. None: half of the cores, since two
    services work at the same time, and threads that outnumber the cores wait for one another."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    """Device of a service that the run starts: auto, cpu, cuda, or cuda:N for one of several."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of a service that the run starts: auto, float32 or bfloat16."""
    max_batch: PositiveInt = 64
    """Most sequences in one batch of a service that the run starts, 1 or more."""
    engine_options: dict[str, Annotated[str, BeforeValidator(_as_text)]] = Field(
        default_factory=dict
    )
    """Further options of the engine, as with ``--engine-option``; numbers, true and false need no
    quotes."""

    @property
    def is_endpoint(self) -> bool:
        """Whether the run starts a service whose model is behind somebody else's endpoint."""
        return self.address is None and self.engine == "openai"

    @property
    def loads_model(self) -> bool:
        """Whether the run starts a service that loads its model on this machine."""
        return self.address is None and self.engine not in ("openai", "scripted")

    @model_validator(mode="after")
    def _security_is_of_running_services(self) -> ServiceConfig:
        for key in ("tls", "token_env"):
            if self.address is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key}: only a running service has it: give its address, or remove {key}; "
                    "what a run starts listens to this machine alone"
                )
        return self


class ServicesConfig(Settings):
    """The three services, and how busy the coordinator keeps them.

    None of it changes a result, so all of it may differ when a run is resumed.
    """

    policy: ServiceConfig = ServiceConfig()
    """The model that is trained."""
    critic: ServiceConfig = ServiceConfig()
    """Critiques and revises."""
    judge: ServiceConfig = ServiceConfig()
    """Compares."""
    panel: dict[str, ServiceConfig] = Field(default_factory=dict)
    """The judges of ``preferences.panel`` by name; those that are not named here are started by the
    run with the defaults."""
    in_flight: int | None = Field(default=None, ge=1, le=100_000)
    """Prompts worked on at the same time, 1 to 100,000. None: as many as the services can use, 128
    at first, and more for as long as their calls hardly wait in the services' queues."""
    start_timeout: float = Field(default=600.0, gt=0)
    """Seconds that a service may take until it serves, above 0."""
    retry_for: float = Field(default=300.0, ge=0)
    """Seconds for which a call that meets an unavailable or full service is tried again, >= 0. At a
    full or slow service they begin anew whenever another call is answered, and fewer calls are in
    flight from then on, until there is time for each."""
    call_timeout: float = Field(default=600.0, gt=0)
    """Deadline of one call, in seconds, above 0. Longer than a call takes with no other in flight:
    a run slows down to what its services can do in this time, but one that a single call cannot
    keep ends it."""
    training_threads: PositiveInt | None = None
    """CPU threads of a training stage, of all its processes together, 1 or more. None: all
    cores."""
    reward_device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d{1,3})?)$")
    """Device of the reward model in the stage rl: cpu, cuda, or cuda:N for one of several. None:
    the policy's; with several processes it has to be."""
    release_for_training: bool = False
    """Stop what the run has started while a model is trained, so that its memory is free, and
    start it again after. For accelerators that cannot hold both."""


class StoreConfig(Settings):
    """How often records are written. Changes no result."""

    part_records: PositiveInt = 2_000
    """Records after which a part is written, 1 or more."""
    part_seconds: float = Field(default=20.0, gt=0)
    """Seconds after which what there is becomes a part, above 0; the first parts come sooner."""
