"""The columns of every Parquet file of a run. Knows nothing of how rows are made.

Raw records keep whatever a later question may need: ids of prompts and principles, the
constitution's digest, seeds, decoding settings, models and weights, raw log-probabilities, timings.
Exports have the columns that TRL trains on (conversational formats).
"""

from __future__ import annotations

import pyarrow as pa

_TEXT = pa.string()
_REAL = pa.float64()

MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))

COMPLETION = pa.struct([("text", _TEXT), ("finish_reason", _TEXT), ("seed", pa.uint64())])
"""One sampled text; ``seed`` repeats it."""

ORIGIN = [("source", _TEXT), ("row", _TEXT), ("category", _TEXT)]
"""Where a prompt is from: as in the configuration, where in that file, and what that calls it."""

SAMPLING = pa.struct(
    [
        ("temperature", _REAL),
        ("top_p", _REAL),
        ("top_k", pa.int64()),
        ("max_tokens", pa.int64()),
    ]
)

USAGE = pa.struct(
    [
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("model_calls", pa.int64()),
        ("cost_usd", _REAL),
    ]
)

TIMING = pa.struct([("queue", _REAL), ("inference", _REAL)])
"""Seconds. The only values that differ between a resumed and an uninterrupted run, with the
cached tokens of USAGE."""

ANSWERED = [
    ("model", _TEXT),
    ("weight_version", _TEXT),
    ("sampling", SAMPLING),
    ("usage", USAGE),
    ("timing", TIMING),
]
"""Who answered, how, at what cost."""

ASSESSMENT = pa.struct(
    [
        ("principle_id", _TEXT),
        ("probability", _REAL),
        ("logprobs", pa.list_(pa.struct([("answer", _TEXT), ("logprob", _REAL)]))),
        ("option_mass", _REAL),
        ("no_verdict_reason", _TEXT),
    ]
)
"""Whether the critic finds something to criticise in a response by one principle."""

PREFLIGHT = pa.schema(
    [
        ("id", _TEXT),
        ("prompt", MESSAGES),
        ("response", _TEXT),
        ("harmful", pa.bool_()),
        ("probability", _REAL),
        ("no_verdict_reason", _TEXT),
        ("principles", pa.list_(ASSESSMENT)),
        ("critic_model", _TEXT),
        ("weight_version", _TEXT),
        ("constitution", _TEXT),
        ("constitution_digest", _TEXT),
        ("usage", USAGE),
        ("timing", TIMING),
    ]
)
"""A row a labelled response. ``harmful``: the label; ``probability``: the critic's, the highest of
the principles'."""

ANSWER = pa.struct(
    [
        ("number", pa.int32()),
        ("question", _TEXT),
        ("answer", COMPLETION),
        ("outcome", _TEXT),
    ]
)
"""What the critic answered to one of a principle's questions; ``number`` 1 is the first."""

ROUND = pa.struct(
    [
        ("round", pa.int32()),
        ("principle_id", _TEXT),
        ("assessment", ASSESSMENT),
        ("answers", pa.list_(ANSWER)),
        ("critique", COMPLETION),
        ("critique_outcome", _TEXT),
        ("revision", COMPLETION),
        ("revision_outcome", _TEXT),
        ("weight_version", _TEXT),
        ("usage", USAGE),
        ("timing", TIMING),
    ]
)

REVISIONS = pa.schema(
    [
        ("id", _TEXT),
        ("kind", _TEXT),
        *ORIGIN,
        ("prompt", MESSAGES),
        ("seed", pa.uint64()),
        ("responses", pa.list_(COMPLETION)),
        ("outcome", _TEXT),
        ("policy", pa.struct(ANSWERED)),
        ("rounds", pa.list_(ROUND)),
        ("principle_seed", pa.uint64()),
        ("constitution", _TEXT),
        ("constitution_digest", _TEXT),
        ("critic_model", _TEXT),
        ("critic_sampling", SAMPLING),
    ]
)
"""A row a prompt. ``kind`` is red_team (one response, its rounds) or helpfulness (responses)."""

RESPONSE = pa.struct([*COMPLETION, ("origin", _TEXT), ("temperature", _REAL)])
"""A candidate for pairs. ``origin``: sample (of the SL model), initial, or revision and its round
(both of the revisions stage)."""

_READING = [
    ("logprob_a", _REAL),
    ("logprob_b", _REAL),
    ("probability_a", _REAL),
    ("no_verdict_reason", _TEXT),
]

CHAIN = pa.struct([("text", _TEXT), *_READING])
"""A chain of thought and what it led to, before the clamp. Log-probabilities are null where there
is no finite number."""

ORDER = pa.struct([("swapped", pa.bool_()), *_READING, ("chains", pa.list_(CHAIN))])

VERDICT = pa.struct(
    [
        ("principle_id", _TEXT),
        ("weight", _REAL),
        ("probability_a", _REAL),
        ("position_dependent", pa.bool_()),
        ("no_verdict_reason", _TEXT),
        ("orders", pa.list_(ORDER)),
    ]
)

VOTE = pa.struct(
    [
        ("judge", _TEXT),
        ("model", _TEXT),
        ("probability_a", _REAL),
        ("no_verdict_reason", _TEXT),
        ("error", _TEXT),
        ("principles", pa.list_(VERDICT)),
        ("weight_version", _TEXT),
        ("usage", USAGE),
        ("timing", TIMING),
    ]
)
"""What one judge of a panel said. ``error``: why its call failed; all but it is then empty."""

COMPARISON = pa.struct(
    [
        ("a", pa.int32()),
        ("b", pa.int32()),
        ("probability_a", _REAL),
        ("no_verdict_reason", _TEXT),
        ("dropped", _TEXT),
        ("principle_seed", pa.uint64()),
        ("chain_seed", pa.uint64()),
        ("principles", pa.list_(VERDICT)),
        ("votes", pa.list_(VOTE)),
        ("agreement", _REAL),
        ("weight_version", _TEXT),
        ("usage", USAGE),
        ("timing", TIMING),
    ]
)
"""``a`` and ``b`` are indices of the row's responses. ``dropped``: why it is not trained on (see
``stages.filters``). A judge's verdicts are in ``principles``, a panel's in ``votes``; a pair with
neither was left out before it was judged. ``agreement``: share of the pairs of judges that prefer
the same response; null below two votes."""

JUDGE_SETTINGS = pa.struct(
    [
        ("both_orders", pa.bool_()),
        ("min_option_mass", _REAL),
        ("chains", pa.int32()),
        ("clamp", _REAL),
        ("chain_sampling", SAMPLING),
    ]
)
"""``chains``, ``clamp`` and ``chain_sampling`` are null without chain of thought."""

RANKED = pa.struct([("response", pa.int32()), ("strength", _REAL)])
"""One of the row's responses in the order of a ranking; ``strength`` is null without a verdict."""

PREFERENCES = pa.schema(
    [
        ("id", _TEXT),
        *ORIGIN,
        ("prompt", MESSAGES),
        ("seed", pa.uint64()),
        ("responses", pa.list_(RESPONSE)),
        ("identical", pa.int32()),
        ("policy", pa.struct(ANSWERED)),
        ("ranking", pa.list_(RANKED)),
        ("comparisons", pa.list_(COMPARISON)),
        ("constitution", _TEXT),
        ("constitution_digest", _TEXT),
        ("judge_model", _TEXT),
        ("judge_settings", JUDGE_SETTINGS),
    ]
)
"""A row a prompt, whether or not a pair came of it. ``identical``: samples equal to another.
``policy``: who made the samples; null if there are none. ``ranking``: best first; empty unless it
chose the pairs."""

EVALUATION = pa.schema(
    [
        ("id", _TEXT),
        ("model", _TEXT),
        ("kind", _TEXT),
        ("prompt_id", _TEXT),
        *ORIGIN,
        ("prompt", MESSAGES),
        ("response", COMPLETION),
        ("policy", pa.struct(ANSWERED)),
        ("truth", _TEXT),
    ]
)
"""A row a model and prompt. ``truth``: what the oracle says the response does; null without one."""

JUDGED_PAIRS = pa.schema(
    [
        ("id", _TEXT),
        ("prompt_id", _TEXT),
        ("kind", _TEXT),
        ("model_a", _TEXT),
        ("model_b", _TEXT),
        ("a_is_better", pa.bool_()),
        ("comparison", COMPARISON),
        ("constitution_digest", _TEXT),
    ]
)
"""A row a pair of two models' responses. ``a_is_better``: by the oracle; null without one."""

SCORED = pa.struct(
    [
        ("principle_id", _TEXT),
        ("weight", _REAL),
        ("score", _REAL),
        ("probabilities", pa.list_(pa.struct([("answer", _TEXT), ("probability", _REAL)]))),
        ("option_mass", _REAL),
        ("no_verdict_reason", _TEXT),
    ]
)
"""A judge's score of a response by one principle, on the scale of its question. ``probabilities``:
of the question's answers, which hold ``option_mass`` together before they are normalised."""

JUDGEMENT = pa.struct(
    [
        ("judge", _TEXT),
        ("model", _TEXT),
        ("score", _REAL),
        ("no_verdict_reason", _TEXT),
        ("error", _TEXT),
        ("principles", pa.list_(SCORED)),
        ("constitution_digest", _TEXT),
        ("weight_version", _TEXT),
        ("usage", USAGE),
        ("timing", TIMING),
    ]
)
"""What one judge said of one response. ``score``: its own, the principles' weighted mean, each
taken to [-1, 1]. ``error``: why its call failed; all but it is then empty."""

EPISODES = pa.schema(
    [
        ("id", _TEXT),
        ("prompt_id", _TEXT),
        ("episode", pa.int64()),
        ("batch", pa.int32()),
        ("seed", pa.uint64()),
        ("place", pa.int32()),
        ("response", _TEXT),
        ("finish_reason", _TEXT),
        ("tokens", pa.int32()),
        (
            "scores",
            pa.list_(pa.struct([("source", _TEXT), ("weight", _REAL), ("score", _REAL)])),
        ),
        ("score", _REAL),
        ("no_score_reason", _TEXT),
        ("penalties", pa.list_(pa.struct([("guard", _TEXT), ("penalty", _REAL)]))),
        ("logprob", _REAL),
        ("reference_logprob", _REAL),
        ("kl", _REAL),
        ("kl_coefficient", _REAL),
        ("reward", _REAL),
        ("advantage", _REAL),
        ("judgements", pa.list_(JUDGEMENT)),
    ]
)
"""A row an episode of RL. ``episode``: its number in the training, from 0; ``batch``: from 1, as in
metrics.jsonl; its policy had learned from those before, but for the last if ``rl.rollouts.ahead``.
``seed`` and ``place``: it is the row ``place`` of what was drawn in that batch by ``seed``.
``scores``: by source; one without a weight is only watched. ``score``: their weighted sum, before
the penalties. ``logprob`` and ``reference_logprob``: of the response, in nats, under its policy and
under the SL model; ``kl``: their difference. ``reward``: what was learned from. ``advantage``: mean
over the response's tokens. Without a score all figures from ``penalties`` on are null, and nothing
was learned from it."""

PROMPT_SAMPLES = pa.schema(
    [
        ("id", _TEXT),
        ("topic", _TEXT),
        ("examples", pa.list_(_TEXT)),
        ("prompt", MESSAGES),
        ("completion", COMPLETION),
        ("policy", pa.struct(ANSWERED)),
    ]
)
"""A row an answer that may be a prompt. ``id``: its number; ``examples``: ids of seed prompts."""

SFT_EXPORT = pa.schema(
    [
        ("id", _TEXT),
        ("source", _TEXT),
        ("round", pa.int32()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
    ]
)
"""TRL's conversational prompt-completion format. ``round`` 0: a response of the policy."""

PREFERENCES_EXPORT = pa.schema(
    [
        ("id", _TEXT),
        ("source", _TEXT),
        ("row", _TEXT),
        ("source_digest", _TEXT),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("probability", _REAL),
    ]
)
"""TRL's conversational preference format. ``probability`` that chosen is better, 0.5 to 1: the
judge's, or that of a comparison which was given in a file, whose SHA-256 (hex) is then the
``source_digest``. ``source`` and ``row``: as in ORIGIN."""

RL_PROMPTS_EXPORT = pa.schema([("id", _TEXT), *ORIGIN, ("prompt", MESSAGES)])
"""TRL's conversational prompt-only format."""
