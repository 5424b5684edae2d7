"""What infills say, slot by slot of the grammar's event, against the exact p(z | x, y)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.stories import grammar
from experiments.stories.corpus import Story
from experiments.stories.grammar import Event

VALUES = (tuple(grammar.HELPERS), tuple(grammar.QUALITIES), grammar.DEEDS, tuple(grammar.THINGS))  # As in `Event`.
Laws = dict[str, Float[np.ndarray, " values"]]


def truth(story: Story) -> Laws:
    """The law of each slot of the middle given the rest of a story; the last entry, of no event, is 0."""
    law = grammar.posterior(grammar.read(story[:3]), grammar.read_ending(story[4]))
    table = law.reshape([len(values) for values in VALUES])
    axes = range(len(VALUES))
    return {
        slot: np.append(table.sum(tuple(a for a in axes if a != axis)), 0.0) for axis, slot in enumerate(Event._fields)
    }


def frequencies(infills: Sequence[str], name: str) -> Laws:
    """How often each value of a slot is told; the last entry counts what tells no event of this person."""
    events = [_event_of(infill, name) for infill in infills]
    counts = {slot: np.zeros(len(values) + 1) for slot, values in zip(Event._fields, VALUES, strict=True)}
    for event in events:
        for slot, values in zip(Event._fields, VALUES, strict=True):
            counts[slot][-1 if event is None else values.index(getattr(event, slot))] += 1
    return {slot: count / len(events) for slot, count in counts.items()}


def _event_of(infill: str, name: str) -> Event | None:
    event = grammar.read_event(infill)
    return event if event is not None and grammar.tell_event(event, name) == infill else None


def total_variation(a: Laws, b: Laws) -> float:
    """Mean over slots of the total variation between two laws."""
    return float(np.mean([0.5 * np.abs(a[slot] - b[slot]).sum() for slot in Event._fields]))


def told(story: Story, rng: np.random.Generator, count: int) -> list[str]:
    """Exact samples of the middle given the rest of a story."""
    beginning = grammar.read(story[:3])
    law = grammar.posterior(beginning, grammar.read_ending(story[4]))
    drawn = rng.choice(len(law), size=count, p=law)
    return [grammar.tell_event(grammar.EVENTS[event], beginning.name) for event in drawn]
