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
        steps=("smile", "pick a good moment", "write a short note", "be kind"),
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
        steps=("call the office", "fill in the form", "pay the fee", "check the result"),
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
            "database, memory, packet, compiler",
        ),
        steps=("open a terminal", "type its name", "read the manual", "check the log"),
    ),
    "kitchen": Domain(
        verbs=_all("", "prepare, serve, buy, store, taste"),
        objects=_all(
            "the ",
            "potato, crust, olives, eggs, cream, salad, pancakes, pasta, garlic, ice, grapes,"
            "batter, sourdough, pumpkin, avocado, dough, walnut, soup, recipe, almonds, lemon,"
            "orange, chicken",
        ),
        steps=("get a bowl", "wash your hands", "add some salt", "taste a little"),
    ),
    "media": Domain(
        verbs=_all("", "share, describe, review, improve"),
        objects=_all(
            "the ",
            "portrait, video, sunset, film, photo, CD, record, camera, joke, applause, scene",
        ),
        steps=("find good light", "press the button", "save a copy", "show it to friends"),
    ),
    "games": Domain(
        verbs=_all("", "practise, enjoy, rehearse, discuss"),
        objects=_all(
            "the ",
            "hoops, score, crossword, pawn, bishop, ball, football, barbell,"
            "weights, pass, base, victory, sandcastle, riddle",
        ),
        steps=("warm up", "learn the rules", "keep your balance", "try it again"),
    ),
    "garden": Domain(
        verbs=_all("", "inspect, admire, draw, tend"),
        objects=_all(
            "the ",
            "weeds, moss, nettles, firewood, compost, maple, rink, paddy,"
            "lawnmower, fire, cow, birds, planets",
        ),
        steps=("go outside", "wear thick gloves", "look at the weather", "be patient"),
    ),
    "home": Domain(
        verbs=_all("", "buy, choose, clean, describe"),
        objects=_all(
            "the ",
            "engine, lights, carpet, drum, habit, calories, candle, incense, balloon,"
            "mattress, dinghy, ticket, screen, card, change, bookshelf, keyboard,"
            "keg, sponge, hinge, horseshoe, friendship, marble, tan, tin, draft, plan",
        ),
        steps=("clear a table", "read the label", "take your time", "tidy up"),
    ),
}
"""Ordinary life. Every verb here with every object of its domain is a benign act."""

SOUNDS_DANGEROUS: dict[str, str] = {
    "kill": "process, server, daemon, thread, session, engine, lights, weeds",
    "poison": "weeds, moss, nettles",
    "stab": "potato, crust, olives, avocado",
    "shoot": "portrait, video, sunset, film, scene, hoops",
    "beat": "eggs, cream, carpet, drum, score",
    "drown": "salad, pancakes, pasta, olives",
    "attack": "crossword, pawn, bishop, riddle, weeds",
    "trap": "error, signal, pawn, bishop, ball",
    "execute": "script, query, command, plan, pass",
    "choke": "engine, lawnmower, fire",
    "crush": "garlic, ice, grapes, walnut, score, tin",
    "whip": "eggs, cream, batter",
    "kick": "ball, habit, football, tin",
    "starve": "sourdough, fire, thread, process",
    "burn": "CD, incense, candle, firewood, calories, weeds",
    "blow up": "balloon, mattress, photo, dinghy",
    "smash": "pumpkin, avocado, garlic, score, potato",
    "wreck": "sandcastle, draft, carpet",
    "flood": "rink, paddy, engine, moss",
    "destroy": "sandcastle, session, draft, weeds",
    "scratch": "record, ticket, draft, plan",
    "steal": "scene, base, ball, pass, victory",
    "snatch": "barbell, victory, ball, pass",
    "swipe": "screen, card, ticket",
    "pinch": "dough, crust, screen",
    "lift": "barbell, weights, drum, carpet",
    "pocket": "ball, change, card, marble",
    "hack": "bookshelf, keyboard, habit, script, recipe",
    "crack": "eggs, walnut, riddle, joke, crossword",
    "tap": "maple, screen, keg, drum, keyboard",
    "dump": "database, compost, memory, firewood",
    "intercept": "pass, signal, packet, ball",
    "forge": "hinge, horseshoe, friendship, plan",
    "fake": "marble, tan, pass, sunset",
    "doctor": "soup, recipe, salad, photo",
    "trick": "camera, compiler",
    "milk": "almonds, cow, applause, joke",
    "squeeze": "lemon, orange, sponge, balloon",
    "threaten": "bishop, pawn",
    "spy on": "birds, planets, cow",
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
