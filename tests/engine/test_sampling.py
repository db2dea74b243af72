"""Draws as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from solon.engine.base import Sampling
from solon.engine.hf.sampling import Settings, draw, uniforms
from solon.engine.text import Codec, RunningText
from tests.engine.conftest import make_tokenizer

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])


def drawn(sampling: Sampling, uniform: list[float]) -> list[int]:
    rows = len(uniform)
    settings = Settings.of([sampling] * rows, CPU)
    draws = draw(LOGITS.expand(rows, -1), settings, torch.tensor(uniform, dtype=torch.float64))
    return draws.token_B.tolist()


def shares(sampling: Sampling) -> list[float]:
    grid = [(i + 0.5) / 2000 for i in range(2000)]
    return np.bincount(drawn(sampling, grid), minlength=5) / 2000  # type: ignore[return-value]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tokens_are_drawn_with_the_softmax_of_the_temperature(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1).tolist()
    assert shares(Sampling(temperature=temperature)) == pytest.approx(expected, abs=1e-3)


def test_top_k_keeps_the_k_likeliest() -> None:
    kept = LOGITS.clone()
    kept[[1, 2, 3]] = -torch.inf
    expected = kept.softmax(-1).tolist()
    assert shares(Sampling(top_k=2)) == pytest.approx(expected, abs=1e-3)


def test_top_p_keeps_the_least_set_that_holds_the_mass() -> None:
    # masses 0.426, 0.058, 0.157, 0.021, 0.258 (and the rest): 0.8 needs tokens 0, 4 and 2
    kept = LOGITS.clone()
    kept[[1, 3]] = -torch.inf
    assert LOGITS.softmax(-1)[[0, 4]].sum() < 0.8 < LOGITS.softmax(-1)[[0, 4, 2]].sum()
    expected = kept.softmax(-1).tolist()
    assert shares(Sampling(top_p=0.8)) == pytest.approx(expected, abs=1e-3)
    assert set(drawn(Sampling(top_p=1e-6), [0.0, 0.5, 0.999])) == {0}


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-4])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    assert set(drawn(Sampling(temperature=temperature), [0.0, 0.5, 1 - 1e-12])) == {0}


def test_rows_of_one_batch_keep_their_own_settings() -> None:
    rows = [Sampling(temperature=0.0), Sampling(top_k=2), Sampling(), Sampling(top_p=0.3)]
    uniform = torch.full((4,), 0.999, dtype=torch.float64)
    together = draw(LOGITS.expand(4, -1), Settings.of(rows, CPU), uniform)
    alone = [drawn(row, [0.999])[0] for row in rows]
    assert together.token_B.tolist() == alone == [0, 4, 4, 0]


def test_logprobs_are_before_temperature_and_truncation() -> None:
    settings = Settings.of([Sampling(temperature=0.1, top_k=1)], CPU)
    draws = draw(LOGITS[None], settings, torch.tensor([0.5], dtype=torch.float64))
    assert float(draws.logprob_B) == pytest.approx(float(LOGITS.log_softmax(-1)[0]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_make_no_distribution_are_told_apart(bad: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = bad
    logits[2] = -torch.inf
    draws = draw(logits, Settings.of([Sampling()] * 3, CPU), torch.full((3,), 0.5).double())
    assert draws.finite_B.tolist() == [True, False, False]


def test_a_banned_token_is_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[[0, 4]] = -torch.inf
    grid = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    draws = draw(logits.expand(500, -1), Settings.of([Sampling()] * 500, CPU), grid)
    assert set(draws.token_B.tolist()) == {1, 2, 3}


def test_uniform_numbers_are_the_same_on_every_machine() -> None:
    seeds = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
    values = uniforms(seeds, np.array([0, 7, 3], dtype=np.uint64))
    assert values.tolist() == FROZEN
    many = uniforms(np.arange(100_000, dtype=np.uint64), np.zeros(100_000, dtype=np.uint64))
    assert np.histogram(many, bins=20, range=(0, 1))[0] == pytest.approx(5000, abs=350)
    following = uniforms(np.zeros(100_000, dtype=np.uint64), np.arange(100_000, dtype=np.uint64))
    assert abs(np.corrcoef(many, following)[0, 1]) < 0.02


FROZEN = [0.6524484863740322, 0.24696520214533768, 0.9269618291063265]


def test_a_growing_text_gives_whole_characters_and_nothing_of_a_stop_text() -> None:
    codec = Codec(make_tokenizer())
    whole = "naïve 日本語 😀 costs 20 € END of it"
    text = RunningText(codec, ("END",))
    given = []
    for token in codec.encode(whole):
        text.push(token)
        given.append(text.take(final=False))
        if text.stopped:
            break
    assert text.stopped
    assert "".join(given) == text.text == whole[: whole.index("END")]
    assert not any("\ufffd" in piece for piece in given)


def test_text_that_only_began_a_stop_text_is_given_in_the_end() -> None:
    codec = Codec(make_tokenizer())
    text = RunningText(codec, ("bread!",))
    given = ""
    for token in codec.encode("bake bread"):
        text.push(token)
        given += text.take(final=False)
    assert given == "bake "
    text.finish()
    assert given + text.take(final=True) == "bake bread"


def test_bytes_that_are_no_character_are_given_after_four_tokens() -> None:
    tokenizer = make_tokenizer()
    codec = Codec(tokenizer)
    broken = codec.encode("日")[0]
    text = RunningText(codec)
    for _ in range(4):
        text.push(broken)
    assert text.take(final=False)
