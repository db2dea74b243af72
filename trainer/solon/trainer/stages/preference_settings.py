"""The configuration of the stage that makes preference pairs (Bai et al. 2022, section 4.1).

Knows nothing of how the stage works; imports no torch, gRPC or pyarrow.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from solon.trainer.settings import Settings
from solon.trainer.stages.settings import SamplingSettings, Share

Temperature = Annotated[float, Field(ge=0, le=10)]
LEAST_MASS_AFTER_CHAINS = 0.1
"""See ``PreferencesConfig.min_option_mass``."""


class ChainOfThoughtSettings(Settings):
    """The judge reasons, then answers; one of its chains that says nothing gives no label."""

    chains: int = Field(default=1, ge=1, le=16)
    """Chains drawn and averaged for every principle and order, 1 to 16. The paper: five help a
    little over one."""
    clamp: float = Field(default=0.4, ge=0, le=0.5)
    """Probabilities are clamped to [clamp, 1 - clamp], 0 to 0.5; 0 is off. After a chain of thought
    they are near 0 and 1, whence the paper's 40 to 60 %. Never applied without chains."""
    sampling: SamplingSettings = SamplingSettings()
    """How chains are drawn. A chain that ``max_tokens`` cuts short gives no verdict."""


JudgeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
"""1 to 32 of a-z, 0-9 and "-"."""


class PanelConfig(Settings):
    """Several judges, each asked the same; one that fails or cannot decide has no vote.

    Where ``rl.reward.judge`` has the judge score responses, they score together as well.
    """

    judges: dict[JudgeName, str] = Field(min_length=2)
    """Name -> model, two or more. Each is started by the run, unless ``services.panel`` has its
    address under that name. Names are 1 to 32 of a-z, 0-9 and "-"."""
    mode: Literal["mean", "majority"] = "mean"
    """How votes become a label: the ``mean`` of the probabilities, or the share of the judges that
    prefer the one response (``majority``), of which an exact tie is half a vote. A score is the
    mean in either mode."""
    quorum: PositiveInt | None = None
    """Votes that it takes for a label or a score, 1 to the number of judges. None: all."""
    max_failed_share: Share = 0.05
    """The stage fails when calls of one judge fail for more than this part of the pairs, or of the
    episodes of RL, 0 to 1."""

    @model_validator(mode="after")
    def _quorum_can_be_reached(self) -> PanelConfig:
        if self.quorum is not None and self.quorum > len(self.judges):
            raise ValueError(
                f"quorum: expected 1 to {len(self.judges)}, the number of judges, got "
                f"{self.quorum!r}"
            )
        return self


class PairFilters(Settings):
    """Which pairs are left out of training. They stay in the records, with the reason.

    What the texts alone decide is decided before the judge is asked, and another pair takes the
    place, if the prompt has one.
    """

    max_repetition: Share | None = 0.5
    """Largest share of a response's word trigrams that were in it before, 0 to 1; ordinary text has
    less than 0.1, a model that has collapsed into repetition (arXiv 2504.04918) nearly 1. None is
    off. Reason: repetitive."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Most times as long, in characters, as the shorter response the longer one may be, 1 or more;
    None is off. Reason: length."""
    min_characters: NonNegativeInt = 0
    """Least characters of either response, 0 or more. Reason: length."""
    max_characters: PositiveInt | None = None
    """Most characters of either response, 1 or more; None is off. Reason: length."""
    max_similarity: Share | None = None
    """Largest share of all pairs of neighbouring words that both responses may have, 0 to 1; None
    is off: only identical responses make no pair. Reason: similar."""
    min_margin: float = Field(default=0.0, ge=0, lt=0.5)
    """Least distance of the label from 1/2, in [0, 1/2); 0 keeps all, even ties, which soft labels
    stand for honestly. Reason: near_tie."""
    consistent_orders: bool = False
    """Leave out pairs on which the two orders disagree. Reason: follows_position."""
    max_copies: PositiveInt | None = None
    """How often the same two responses may be a pair over all prompts of an iteration, 1 or more,
    the first by prompt id being kept; None is off. Reason: copy."""


class GivenConfig(Settings):
    """How ``prompts.comparisons`` are mixed in: in the paper, human comparisons of helpfulness."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Part of all pairs, of the training and of the test split, that is given, in [0, 1); drawn
    anew by the run's seed, and in each iteration. In the paper about 0.43 (135,296 beside
    182,831)."""
    probability: float = Field(default=1.0, gt=0.5, le=1)
    """Label of a given pair: that the response it prefers is better, in (0.5, 1]; below 1 for
    people who may be wrong."""


class PreferencesConfig(Settings):
    """Pairs of the SL model's responses, labelled by the judge (section 4.1 of the paper).

    In later iterations they are the RL model's.
    """

    source: Literal["samples", "revisions", "both"] = "samples"
    """Where the responses of a pair come from: ``samples`` of the SL model (the paper's);
    ``revisions``, each prompt's last one against its first response, which costs no generation; or
    ``both``. ``responses``, ``pairs``, ``selection`` and ``temperatures`` are of samples. Revisions
    are compared in the first iteration alone."""
    responses: int = Field(default=2, ge=2, le=16)
    """Responses drawn from the SL model for every prompt, 2 to 16."""
    pairs: PositiveInt = 1
    """Most pairs compared for every prompt, 1 or more. Identical responses make no pair."""
    selection: Literal["random", "most_different", "best_worst"] = "random"
    """Which pairs: a seeded draw; those whose words differ most; or, of three responses or more,
    the best and the worst by the judge's ranking, then the second of either end, and so on. The
    ranking takes further judgements, by the same principles, at once (without chains of thought)
    and of one judge."""
    sampling: SamplingSettings = SamplingSettings()
    """How the responses are drawn."""
    temperatures: tuple[Temperature, ...] = ()
    """The responses' temperatures in turn, at most one a response; from the first again where there
    are more responses. Empty: ``sampling.temperature`` for all."""
    principles: PositiveInt | Literal["all"] = "all"
    """Principles for every comparison: ``all``, weighted, or that many drawn anew each time."""
    both_orders: bool = True
    """Show the judge each pair in both orders and average, against position bias."""
    min_option_mass: Share | None = None
    """Least probability that (A) and (B) must hold together for a verdict, 0 to 1; 0 is off. None:
    off, but 0.1 after chains of thought: a judge that ends in anything else has not answered."""
    chain_of_thought: ChainOfThoughtSettings | None = None
    """Let the judge reason before it answers; ``{}`` as the paper does. None: it answers at
    once."""
    panel: PanelConfig | None = None
    """Judges that compare together, here and in the evaluation, and reward RL together. None:
    ``models.judge`` alone."""
    filters: PairFilters = PairFilters()
    """Pairs that are not trained on."""
    max_dropped_share: Share = 0.5
    """The stage fails when the filters leave out more than this part of the pairs, 0 to 1."""
    max_no_verdict_share: Share = 0.05
    """The stage fails when the judge gives no verdict for more than this part of the pairs."""
    max_position_bias: Share = 0.8
    """The stage fails when more than this part of the verdicts in both orders follow the position:
    the judge then prefers the first response, or the second, whichever they are. Of a coin's
    verdicts half do."""
    max_unusable_share: Share = 0.1
    """The stage fails when more than this part of the responses is empty, truncated or aborted."""
    given: GivenConfig = GivenConfig()
    """Comparisons from files beside those that the judge labels."""
    test_share: Share = 0.1
    """Part of the prompts whose pairs test the reward model instead of training it, 0 to 1."""

    @model_validator(mode="after")
    def _every_temperature_is_drawn_at(self) -> PreferencesConfig:
        if len(self.temperatures) > self.responses:
            raise ValueError(
                f"temperatures: expected at most one for each of the {self.responses} responses, "
                f"got {list(self.temperatures)!r}; raise responses"
            )
        return self

    @model_validator(mode="after")
    def _one_judge_ranks(self) -> PreferencesConfig:
        if self.selection == "best_worst" and (self.panel is not None or self.responses < 3):
            raise ValueError(
                "selection: best_worst ranks three responses or more by one judge: raise "
                f"responses, now {self.responses!r}, remove panel, or choose random or "
                "most_different"
            )
        return self

    @property
    def least_option_mass(self) -> float:
        """``min_option_mass`` as the judge is to take it."""
        if self.min_option_mass is not None:
            return self.min_option_mass
        return LEAST_MASS_AFTER_CHAINS if self.chain_of_thought else 0.0
