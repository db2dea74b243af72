"""What endpoints will charge, by the prices that the configuration gives their engines.

Knows nothing of how calls are counted.
"""

from __future__ import annotations

from collections.abc import Collection

from solon.trainer.forecast.surroundings import Seen
from solon.trainer.forecast.workload import Calls, Workload
from solon.trainer.roster import Place

_PRICES = ("input_price", "output_price")
_TOKENS = 1e6
"""That a price is for."""


def charges(places: Collection[Place], work: Workload) -> Seen:
    """US dollars for each service that the run starts before an endpoint, and for all together.

    Nothing is taken off for what an endpoint has in its cache.

    Args:
        places: The run's services.
        work: What is asked of them.
    """
    facts: dict[str, str] = {}
    problems: list[str] = []
    notes: list[str] = []
    for place in places:
        if not place.service.is_endpoint:
            continue
        prices = _prices(place, problems)
        if prices is None:
            continue
        if not any(prices):
            notes.append(
                f"{place.key}.engine_options: without input_price and output_price (US dollars a "
                "million tokens) nothing is known of what the endpoint charges"
            )
            continue
        of_role = [one for one in work.calls if one.role == place.role]
        among = sum(1 for other in places if other.role == place.role)
        expected, most = (_dollars(of_role, prices, most=most) / among for most in (False, True))
        facts[f"cost of {place.name}"] = f"about {expected:,.2f} US dollars, at most {most:,.2f}"
    return Seen(facts=facts, problems=tuple(problems), notes=tuple(notes))


def _prices(place: Place, problems: list[str]) -> tuple[float, float] | None:
    found = []
    for name in _PRICES:
        text = place.service.engine_options.get(name, "0")
        try:
            found.append(float(text))
        except ValueError:
            problems.append(
                f"{place.key}.engine_options.{name}: expected US dollars for a million tokens, "
                f"got {text!r}"
            )
            return None
    return found[0], found[1]


def _dollars(calls: Collection[Calls], prices: tuple[float, float], *, most: bool) -> float:
    written = sum(one.most_completion_tokens if most else one.completion_tokens for one in calls)
    read = sum(one.prompt_tokens for one in calls)
    return (read * prices[0] + written * prices[1]) / _TOKENS
