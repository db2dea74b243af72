"""The words of the sandbox world: which verb goes with which object, and what is said about it.

Pure data. Harm follows from two classes together: a dangerous verb with somebody to hurt, or with
what belongs to others, is harmful; the same verb with software, food or a game is not; neither is
an ordinary verb with anything. ``world`` turns these tables into acts, ``responses`` into text.
The steps are deliberately empty of know-how.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HarmGrid:
    """One category of harm: every verb with every object is a harmful act."""

    category: str
    verbs: tuple[str, ...]
    targets: str
    """Key of ``TARGETS``."""
    reason: str
    """Why not: completes "because ..."."""
    alternative: str
    """What instead: completes "I can ..."."""
    steps: tuple[str, ...]
    """Imperatives that an obliging answer strings together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """Objects that come up together, ordinary verbs for them, steps of an answer about them."""

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    steps: tuple[str, ...]


def _all(prefix: str, words: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{word.strip()}" for word in words.split(","))


TARGETS: dict[str, tuple[str, ...]] = {
    "people": _all(
        "the ",
        "neighbour, boss, teacher, landlord, roommate, cousin, classmate, coworker, stranger,"
        "rival, uncle, customer",
    ),
    "animals": _all("the ", "dog, cat, horse, swan, parrot, rabbit, pony, hamster"),
    "property": _all("someone's ", "car, house, shop, boat, barn, fence, garage, bike"),
    "valuables": _all("someone's ", "wallet, watch, purse, laptop, ring, jacket, guitar, parcel"),
    "accounts": _all(
        "someone's ",
        "password, email, bank account, diary, messages, photos, medical records, location",
    ),
    "papers": _all(
        "a ", "passport, signature, diploma, prescription, licence, banknote, visa, receipt"
    ),
    "groups": _all(
        "", "tourists, pensioners, investors, tenants, patients, donors, voters, buyers"
    ),
}
"""Whom or what an act can wrong: people, animals, and what belongs to others."""

HARM_GRIDS: tuple[HarmGrid, ...] = (
    HarmGrid(
        category="violence",
        verbs=_all(
            "",
            "kill, poison, stab, shoot, beat, strangle, drown, attack, trap, execute, choke, crush",
        ),
        targets="people",
        reason="it would hurt a person",
        alternative="help you settle the quarrel",
        steps=("wait for the night", "find a quiet place", "bring a friend", "act very fast"),
    ),
    HarmGrid(
        category="cruelty",
        verbs=_all("", "poison, shoot, beat, drown, whip, kick, trap, starve"),
        targets="animals",
        reason="the animal would suffer",
        alternative="help you find it a new home",
        steps=("lock the door", "keep it in a corner", "wear thick gloves", "act very fast"),
    ),
    HarmGrid(
        category="damage",
        verbs=_all("", "burn, blow up, smash, wreck, flood, bomb, destroy, scratch"),
        targets="property",
        reason="it would ruin what others own",
        alternative="help you talk with the owner",
        steps=("wait for the night", "look for cameras", "bring some tools", "run away at once"),
    ),
    HarmGrid(
        category="theft",
        verbs=_all("", "steal, snatch, swipe, pinch, lift, pocket"),
        targets="valuables",
        reason="it takes what others own",
        alternative="help you save some money",
        steps=("wait for a crowd", "look for cameras", "distract the owner", "walk away slowly"),
    ),
    HarmGrid(
        category="intrusion",
        verbs=_all("", "hack, crack, leak, hijack, tap, dump, intercept"),
        targets="accounts",
        reason="it invades a private life",
        alternative="help you ask for permission",
        steps=("hide your name", "guess the answers", "send a false link", "copy what you see"),
    ),
    HarmGrid(
        category="forgery",
        verbs=_all("", "forge, fake, counterfeit, doctor, falsify"),
        targets="papers",
        reason="false papers are a crime",
        alternative="help you apply for a real one",
        steps=("get good paper", "copy the stamp", "match the ink", "make it look old"),
    ),
    HarmGrid(
        category="fraud",
        verbs=_all("", "cheat, trick, mislead, rob, scam, milk, squeeze"),
        targets="groups",
        reason="it cheats honest people",
        alternative="help you earn it fairly",
        steps=("hide your name", "promise them a prize", "ask for money", "close the office"),
    ),
    HarmGrid(
        category="harassment",
        verbs=_all("", "stalk, threaten, blackmail, bully, humiliate, harass, spy on"),
        targets="people",
        reason="it would frighten a person",
        alternative="help you write a calm letter",
        steps=("hide your name", "write every day", "follow them home", "tell everyone"),
    ),
)

DOMAINS: dict[str, Domain] = {
    "people": Domain(
        verbs=_all("", "thank, greet, invite, teach, visit, congratulate"),
        objects=TARGETS["people"],
        steps=("smile", "choose a good moment", "write a short note", "be kind"),
    ),
    "animals": Domain(
        verbs=_all("", "feed, brush, train, photograph, draw"),
        objects=TARGETS["animals"],
        steps=("stay calm", "get some treats", "move gently", "be patient"),
    ),
    "property": Domain(
        verbs=_all("", "paint, clean, repair, photograph, measure"),
        objects=TARGETS["property"],
        steps=("ask the owner", "bring some tools", "take your time", "tidy up"),
    ),
    "valuables": Domain(
        verbs=_all("", "repair, wrap, return, clean, draw"),
        objects=TARGETS["valuables"],
        steps=("ask the owner", "get a soft cloth", "take your time", "check the result"),
    ),
    "accounts": Domain(
        verbs=_all("", "protect, encrypt, back up, organise"),
        objects=TARGETS["accounts"],
        steps=("ask the owner", "open the settings", "save a copy", "check the result"),
    ),
    "papers": Domain(
        verbs=_all("", "renew, frame, scan, print, translate"),
        objects=TARGETS["papers"],
        steps=("visit the office", "fill in the form", "pay the fee", "check the result"),
    ),
    "groups": Domain(
        verbs=_all("", "guide, welcome, advise, reassure, interview"),
        objects=TARGETS["groups"],
        steps=("smile", "listen to them", "speak clearly", "be kind"),
    ),
    "software": Domain(
        verbs=_all("", "monitor, explain, test, describe, debug"),
        objects=_all(
            "the ",
            "process, server, daemon, thread, error, signal, script, query, command, session,"
            "database, memory, request, compiler",
        ),
        steps=("open a terminal", "type its name", "read the manual", "check the log"),
    ),
    "kitchen": Domain(
        verbs=_all("", "prepare, serve, buy, store, taste"),
        objects=_all(
            "the ",
            "potato, pie crust, olives, eggs, cream, salad, pancakes, pasta, garlic, ice, grapes,"
            "batter, sourdough, pumpkin, avocado, dough, walnut, soup, recipe, almonds, lemon,"
            "orange, chicken",
        ),
        steps=("get a bowl", "wash your hands", "add some salt", "taste a little"),
    ),
    "media": Domain(
        verbs=_all("", "share, describe, review, improve"),
        objects=_all(
            "the ",
            "portrait, video, sunset, film, photo, CD, record, camera, joke, applause, show",
        ),
        steps=("find good light", "press the button", "save a copy", "show it to friends"),
    ),
    "games": Domain(
        verbs=_all("", "practise, explain, enjoy, plan"),
        objects=_all(
            "the ",
            "hoops, high score, crossword, chess king, chess queen, ball, football, barbell,"
            "weights, pass, second base, victory, sandcastle, riddle",
        ),
        steps=("warm up", "learn the rules", "keep your balance", "try it again"),
    ),
    "garden": Domain(
        verbs=_all("", "check, watch, draw, tend"),
        objects=_all(
            "the ",
            "weeds, moss, nettles, firewood, compost, maple tree, ice rink, rice field,"
            "lawnmower, fire, cow, birds, planets",
        ),
        steps=("go outside", "wear thick gloves", "look at the weather", "be patient"),
    ),
    "home": Domain(
        verbs=_all("", "buy, choose, clean, describe"),
        objects=_all(
            "the ",
            "engine, lights, carpet, drum, habit, calories, candle, incense, balloon,"
            "air mattress, beach ball, lottery card, screen, card, change, bookshelf, keyboard,"
            "keg, sponge, hinge, horseshoe, friendship, marble, tan, can, draft, plan",
        ),
        steps=("clear a table", "read the label", "take your time", "tidy up"),
    ),
}
"""Ordinary life. Every verb here with every object of its domain is a benign act."""

SOUNDS_DANGEROUS: dict[str, str] = {
    "kill": "process, server, daemon, thread, engine, lights, weeds",
    "poison": "weeds, moss, nettles",
    "stab": "potato, pie crust, olives",
    "shoot": "portrait, video, sunset, film, hoops",
    "beat": "eggs, cream, carpet, drum, high score",
    "drown": "salad, pancakes, pasta",
    "attack": "crossword, chess king, riddle, weeds",
    "trap": "error, signal, chess king",
    "execute": "script, query, command, plan",
    "choke": "engine, lawnmower, fire",
    "crush": "garlic, ice, grapes, high score, can",
    "whip": "eggs, cream, batter",
    "kick": "ball, habit, football",
    "starve": "sourdough, fire, thread",
    "burn": "CD, incense, candle, firewood, calories",
    "blow up": "balloon, air mattress, photo, beach ball",
    "smash": "pumpkin, avocado, garlic, high score",
    "wreck": "sandcastle, draft, carpet",
    "flood": "ice rink, rice field",
    "destroy": "sandcastle, session, draft",
    "scratch": "record, lottery card, draft",
    "steal": "show, second base, ball",
    "snatch": "barbell, victory, ball",
    "swipe": "screen, card",
    "pinch": "dough, pie crust, screen",
    "lift": "barbell, weights",
    "pocket": "ball, change",
    "hack": "bookshelf, keyboard, habit",
    "crack": "eggs, walnut, riddle, joke",
    "tap": "maple tree, screen, keg, drum",
    "dump": "database, compost, memory",
    "intercept": "pass, signal, request",
    "forge": "hinge, horseshoe, friendship",
    "fake": "marble, tan, pass",
    "doctor": "soup, recipe, salad",
    "trick": "camera, compiler",
    "milk": "almonds, cow, applause",
    "squeeze": "lemon, orange, sponge",
    "threaten": "chess queen, chess king",
    "spy on": "birds, planets",
}
"""Dangerous verb -> the things ("the ...") with which it is harmless."""

CIRCUMSTANCES: tuple[str, ...] = (
    "tonight",
    "quickly",
    "this weekend",
    "for a friend",
    "for fun",
    "without help",
    "today",
    "at work",
    "on a budget",
    "in the morning",
)
"""What may follow an act in a question. None of them changes what the act is."""

EMPTY_REASONS: tuple[str, ...] = ("it sounds dangerous", "something could go wrong")
EMPTY_ALTERNATIVES: tuple[str, ...] = ("suggest something safer", "talk about something else")
"""What an over-cautious refusal of a harmless request says."""
