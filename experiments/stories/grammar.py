"""A grammar of five-sentence stories whose fourth sentence depends on what comes before and after, with known laws.

    anna went to the lake .  she wanted to swim .  but she fell into a hole .       the beginning x
    a kind guard lent her a rope .                                                  the middle z, an event
    she thanked the stranger and gave it back .                                     the ending y

The event is drawn given the place and the trouble of the beginning, as ``p(helper | place) p(quality) p(deed | helper)
p(thing | trouble)``, and the ending given the event, as ``p(whom | helper) p(outcome | thing, deed)``. One ending fits
unlike events (a friend may be a brother, a boy or a dog; what is given back was a loan, whatever it was), and now and
then it fits none, so that p(z | x, y) has several modes and every event can be followed by every ending. All laws are
tables, and the posterior is an enumeration.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SHE = ("anna", "mary", "lucy", "emma", "nora", "ruth", "clara", "jane")
HE = ("tom", "ben", "sam", "jack", "paul", "leo", "max", "karl")
NAMES = (*SHE, *HE)

# What one may want at a place, and whom one likely meets there.
PLACES = {
    "lake": (("swim", "fish", "row"), ("boy", "dog", "woman")),
    "market": (("shop", "eat", "sing"), ("baker", "tourist", "goat")),
    "farm": (("work", "rest", "ride"), ("horse", "goat", "cousin")),
    "forest": (("hike", "camp", "hunt"), ("dog", "guard", "brother")),
    "castle": (("paint", "look", "play"), ("guard", "tourist", "boy")),
    "hospital": (("rest", "work", "help"), ("nurse", "sister", "woman")),
    "village": (("dance", "eat", "shop"), ("cousin", "baker", "horse")),
    "school": (("read", "play", "sing"), ("sister", "brother", "nurse")),
}
# What may be in the way, and which things likely turn up then.
TROUBLES = {
    "it began to rain": ("coat", "boat", "cake", "bike"),
    "{she} was very hungry": ("pear", "cake", "knife", "cart"),
    "{her} car broke down": ("bike", "cart", "rope", "lamp"),
    "{she} lost the path": ("map", "lamp", "pie", "ladder"),
    "{she} fell into a hole": ("rope", "ladder", "knife", "map"),
    "the night was cold": ("coat", "pie", "boat", "pear"),
}
# What a helper does likely, and whom the ending likely thanks, most likely first.
HELPERS = {
    "brother": (("gave", "lent"), ("friend", "relative")),
    "sister": (("gave", "lent"), ("relative", "friend")),
    "cousin": (("lent", "showed"), ("relative", "stranger")),
    "guard": (("showed", "lent"), ("worker", "stranger")),
    "nurse": (("gave", "brought"), ("worker", "relative")),
    "baker": (("sold", "gave"), ("worker", "friend")),
    "boy": (("threw", "sold"), ("friend", "stranger")),
    "woman": (("lent", "sold"), ("stranger", "relative")),
    "tourist": (("showed", "sold"), ("stranger", "worker")),
    "dog": (("brought", "threw"), ("friend", "animal")),
    "horse": (("brought", "showed"), ("animal", "worker")),
    "goat": (("brought", "threw"), ("animal", "friend")),
}
GROUPS = (
    ("brother", "sister", "cousin"),
    ("guard", "nurse", "baker"),
    ("boy", "woman", "tourist"),
    ("dog", "horse", "goat"),
)
QUALITIES = {"": 0.5, "kind": 0.2, "young": 0.2, "tired": 0.1}
DEEDS = ("gave", "lent", "sold", "showed", "brought", "threw")
# What a thing is likely good for, most likely first.
THINGS = {
    "rope": ("climbed out", "found the way"),
    "ladder": ("climbed out", "stayed dry"),
    "knife": ("ate well", "climbed out"),
    "pear": ("ate well", "rode home"),
    "cake": ("ate well", "stayed dry"),
    "pie": ("ate well", "found the way"),
    "bike": ("rode home", "found the way"),
    "boat": ("rode home", "stayed dry"),
    "cart": ("rode home", "ate well"),
    "coat": ("stayed dry", "ate well"),
    "map": ("found the way", "rode home"),
    "lamp": ("found the way", "climbed out"),
}
WHOM = ("relative", "worker", "stranger", "animal", "friend")
OUTCOMES = ("climbed out", "ate well", "rode home", "stayed dry", "found the way", "gave it back", "paid a coin")
CONSEQUENCES = {"lent": "gave it back", "sold": "paid a coin"}  # Of a deed, whatever the thing.

LIKELY_HELPER, LIKELY_THING, LIKELY_DEED = 6.0, 5.0, 6.0  # Weights; that of anything else is 1.
FIRST, SECOND = 0.55, 0.30  # Of a helper's or a thing's two likely words in an ending; the rest is spread over all.
CONSEQUENCE = 0.5  # Share of a deed's own consequence in the outcome.


class Beginning(NamedTuple):
    """What the first three sentences say."""

    name: str
    place: str
    goal: str
    trouble: str


class Event(NamedTuple):
    """What the fourth sentence says; ``quality`` may be empty."""

    helper: str
    quality: str
    deed: str
    thing: str


class Ending(NamedTuple):
    """What the fifth sentence says."""

    whom: str
    outcome: str


EVENTS = tuple(itertools.starmap(Event, itertools.product(HELPERS, QUALITIES, DEEDS, THINGS)))
ENDINGS = tuple(itertools.starmap(Ending, itertools.product(WHOM, OUTCOMES)))
BEGINNINGS = tuple(
    Beginning(name, place, goal, trouble)
    for name in NAMES
    for place, (goals, _) in PLACES.items()
    for goal in goals
    for trouble in TROUBLES
)


def pronouns(name: str) -> dict[str, str]:
    """Subject, possessive and object, named by those of a woman."""
    return dict(she="she", her="her", to_her="her") if name in SHE else dict(she="he", her="his", to_her="him")


def tell(beginning: Beginning) -> tuple[str, str, str]:
    """Sentences 1 to 3."""
    name, place, goal, trouble = beginning
    words = pronouns(name)
    return (f"{name} went to the {place} .", f"{words['she']} wanted to {goal} .", f"but {trouble.format(**words)} .")


def tell_event(event: Event, name: str) -> str:
    """Sentence 4."""
    subject = " ".join(filter(None, ("a", event.quality, event.helper)))
    return f"{subject} {event.deed} {pronouns(name)['to_her']} a {event.thing} ."


def tell_ending(ending: Ending, name: str) -> str:
    """Sentence 5."""
    return f"{pronouns(name)['she']} thanked the {ending.whom} and {ending.outcome} ."


WORDS = tuple(
    sorted(
        {word for b in BEGINNINGS for sentence in tell(b) for word in sentence.split()}
        | {word for e in EVENTS for name in (SHE[0], HE[0]) for word in tell_event(e, name).split()}
        | {word for y in ENDINGS for word in tell_ending(y, SHE[0]).split()}
    )
)

_BEGINNING = {tell(beginning): beginning for beginning in BEGINNINGS}
_EVENT = {tell_event(event, name): event for event in EVENTS for name in (SHE[0], HE[0])}
_ENDING = {tell_ending(ending, name): ending for ending in ENDINGS for name in (SHE[0], HE[0])}


def read(sentences: tuple[str, str, str]) -> Beginning:
    """What sentences 1 to 3 say; a KeyError if the grammar does not tell them."""
    return _BEGINNING[sentences]


def read_event(sentence: str) -> Event | None:
    """What a fourth sentence says, or None if no story has it."""
    return _EVENT.get(sentence)


def read_ending(sentence: str) -> Ending:
    """What a fifth sentence says; a KeyError if the grammar does not tell it."""
    return _ENDING[sentence]


def _weighted(words, likely: tuple[str, ...], weight: float) -> dict[str, float]:
    weights = {word: weight if word in likely else 1.0 for word in words}
    return {word: w / sum(weights.values()) for word, w in weights.items()}


def _spread(words: tuple[str, ...], shares: dict[str, float]) -> dict[str, float]:
    """The shares, and what they leave over of 1 spread over all words."""
    rest = (1.0 - sum(shares.values())) / len(words)
    return {word: rest + shares.get(word, 0.0) for word in words}


_HELPER = {place: _weighted(HELPERS, likely, LIKELY_HELPER) for place, (_, likely) in PLACES.items()}
_DEED = {helper: _weighted(DEEDS, likely, LIKELY_DEED) for helper, (likely, _) in HELPERS.items()}
_THING = {trouble: _weighted(THINGS, likely, LIKELY_THING) for trouble, likely in TROUBLES.items()}
_WHOM = {h: _spread(WHOM, {first: FIRST, second: SECOND}) for h, (_, (first, second)) in HELPERS.items()}


def _outcome(thing: str, deed: str) -> dict[str, float]:
    first, second = THINGS[thing]
    own = CONSEQUENCE if deed in CONSEQUENCES else 0.0
    shares = {first: FIRST * (1.0 - own), second: SECOND * (1.0 - own)}
    return _spread(OUTCOMES, shares | ({CONSEQUENCES[deed]: own * (FIRST + SECOND)} if own else {}))


_OUTCOME = {(thing, deed): _outcome(thing, deed) for thing in THINGS for deed in DEEDS}


def event_law(beginning: Beginning) -> Float[np.ndarray, " events"]:
    """p(z | x) of each of `EVENTS`."""
    helper, thing = _HELPER[beginning.place], _THING[beginning.trouble]
    return np.array(
        [helper[e.helper] * QUALITIES[e.quality] * _DEED[e.helper][e.deed] * thing[e.thing] for e in EVENTS]
    )


ENDING_LAW = np.array(
    [[_WHOM[e.helper][y.whom] * _OUTCOME[e.thing, e.deed][y.outcome] for y in ENDINGS] for e in EVENTS]
)
"""p(y | z) of each of `EVENTS` and `ENDINGS`, ``[events, endings]``."""


def posterior(beginning: Beginning, ending: Ending) -> Float[np.ndarray, " events"]:
    """p(z | x, y) of each of `EVENTS`."""
    joint = event_law(beginning) * ENDING_LAW[:, ENDINGS.index(ending)]
    return joint / joint.sum()


def longest_stories() -> list[tuple[str, ...]]:
    """Stories in which every sentence once has its greatest number of words."""
    event, ending = (max(told, key=lambda sentence: len(sentence.split())) for told in (_EVENT, _ENDING))
    return [(*told, event, ending) for told in _BEGINNING]


def sample(rng: np.random.Generator, count: int) -> list[tuple[str, ...]]:
    """Stories of five sentences each."""
    laws: dict[tuple[str, str], np.ndarray] = {}
    stories = []
    for index in rng.integers(len(BEGINNINGS), size=count):
        beginning = BEGINNINGS[index]
        scene = (beginning.place, beginning.trouble)
        if scene not in laws:
            laws[scene] = np.cumsum(event_law(beginning))
        e, y = rng.random(2)
        event = min(int(np.searchsorted(laws[scene], e)), len(EVENTS) - 1)
        ending = min(int(np.searchsorted(_ENDING_CDF[event], y)), len(ENDINGS) - 1)
        name = beginning.name
        stories.append((*tell(beginning), tell_event(EVENTS[event], name), tell_ending(ENDINGS[ending], name)))
    return stories


_ENDING_CDF = np.cumsum(ENDING_LAW, axis=1)
