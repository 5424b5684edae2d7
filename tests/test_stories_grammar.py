"""The grammar of stories: what is known of it by enumeration, and that what it tells follows its laws."""

import numpy as np
import pytest
import scipy.stats

from experiments.stories import grammar
from experiments.stories.grammar import BEGINNINGS, ENDING_LAW, ENDINGS, EVENTS, PLACES, TROUBLES, Beginning

# Names and goals change no law.
SCENES = [Beginning("anna", place, PLACES[place][0][0], trouble) for place in PLACES for trouble in TROUBLES]


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def test_laws_sum_to_one():
    np.testing.assert_allclose(ENDING_LAW.sum(axis=1), 1.0, rtol=1e-12)
    for scene in SCENES:
        np.testing.assert_allclose(grammar.event_law(scene).sum(), 1.0, rtol=1e-12)


def test_there_are_more_than_a_million_distinct_stories():
    assert len(BEGINNINGS) * len(EVENTS) * len(ENDINGS) > 1e8
    told = {grammar.tell(beginning) for beginning in BEGINNINGS}
    events = {grammar.tell_event(event, "tom") for event in EVENTS}
    endings = {grammar.tell_ending(ending, "tom") for ending in ENDINGS}
    assert (len(told), len(events), len(endings)) == (len(BEGINNINGS), len(EVENTS), len(ENDINGS))


def test_the_middle_is_uncertain_and_the_ending_says_much_about_it():
    """H(z | x) of at least 2 nats and I(z; y | x) of at least 1, in every scene."""
    for scene in SCENES:
        p_event = grammar.event_law(scene)
        p_ending = p_event @ ENDING_LAW
        information = entropy(p_ending) - p_event @ entropy(ENDING_LAW)
        assert entropy(p_event) > 2.0 and information > 1.0, scene


def test_the_posterior_is_often_multimodal():
    """In at least a quarter of the stories two unlike groups of helpers have a quarter of the mass each."""
    groups = np.array([[event.helper in group for group in grammar.GROUPS] for event in EVENTS], float)
    shares = []
    for scene in SCENES:
        joint = grammar.event_law(scene)[:, None] * ENDING_LAW
        p_ending = joint.sum(axis=0)
        of_group = (groups.T @ joint) / p_ending
        shares.append(p_ending @ (np.sum(of_group >= 0.25, axis=0) >= 2))
    assert np.mean(shares) > 0.25


def test_the_posterior_is_the_law_of_events_among_stories_with_that_ending():
    """By counting a hundred thousand stories of one scene."""
    rng, scene = np.random.default_rng(0), SCENES[4]
    events = rng.choice(len(EVENTS), size=100_000, p=grammar.event_law(scene))
    endings = (rng.random(len(events))[:, None] > np.cumsum(ENDING_LAW[events], axis=1)).sum(axis=1)
    ending = np.bincount(endings).argmax()
    found = events[endings == ending]
    helpers = list(grammar.HELPERS)
    counts = np.bincount([helpers.index(EVENTS[e].helper) for e in found], minlength=len(helpers))
    law = grammar.posterior(scene, ENDINGS[ending]).reshape(len(helpers), -1).sum(axis=1)
    assert scipy.stats.chisquare(counts, len(found) * law).pvalue > 1e-3


def test_sampled_stories_follow_the_laws():
    stories = grammar.sample(np.random.default_rng(1), 20_000)
    assert len({story[:3] for story in stories}) > 0.99 * len(BEGINNINGS)
    in_scene = []
    for story in stories:
        beginning, event, ending = (
            grammar.read(story[:3]),
            grammar.read_event(story[3]),
            grammar.read_ending(story[4]),
        )
        assert grammar.tell(beginning) == story[:3] and grammar.tell_event(event, beginning.name) == story[3]
        in_scene.append((beginning, event, ending))
    whom = [ending.whom for _, event, ending in in_scene if event.helper == "dog"]
    counts = np.array([whom.count(word) for word in grammar.WHOM])
    law = {"friend": 0.55 + 0.03, "animal": 0.30 + 0.03}
    expected = len(whom) * np.array([law.get(word, 0.03) for word in grammar.WHOM])
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
    things = [event.thing for beginning, event, _ in in_scene if beginning.trouble == "the night was cold"]
    share = np.mean([thing in TROUBLES["the night was cold"] for thing in things])
    assert share == pytest.approx(20 / 28, abs=5 * 0.5 / np.sqrt(len(things)))


@pytest.mark.parametrize(
    "sentence", ["a guard lent her a rope", "a guard a lent her rope .", "the guard lent her a rope ."]
)
def test_what_the_grammar_does_not_tell_is_no_event(sentence):
    assert grammar.read_event(sentence) is None
    assert grammar.read_event("a guard lent her a rope .") == grammar.Event("guard", "", "lent", "rope")
