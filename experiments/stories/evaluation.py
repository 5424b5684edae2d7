"""Sets of infills in numbers and to read: log r, likeness to the reference, diversity, and what their events are."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from experiments import hosts
from experiments.plots import plt, save
from experiments.stories import slots
from experiments.stories.corpus import Story
from experiments.stories.likeness import Likeness
from experiments.stories.words import Vocabulary, padded, split
from rtbjax.metrics import text

SHOWN_STORIES, SHOWN_INFILLS = 3, 4
SELF_BLEU_INFILLS = 20  # Of each story: its cost is the square of their number.
LogReward = Callable[[Int[np.ndarray, "B L"], int], Float[np.ndarray, " B"]]
Baselines = Callable[[int], dict[str, np.ndarray]]
Infills = list[list[str]]  # Of each story.


class Evaluation:
    """Metrics of sets of infills ``[N, n, L]`` of N stories, and a picture of some."""

    def __init__(
        self,
        stories: Sequence[Story],
        vocabulary: Vocabulary,
        log_reward: LogReward,
        baselines: Baselines,
        likenesses: dict[str, Likeness],
        *,
        grammar: bool,
        seed: int,
    ):
        """Prepares to evaluate.

        Args:
          stories: N.
          vocabulary: of the infills.
          log_reward: log r of infills of a story, by its number.
          baselines: sets of so many infills of each story, by name.
          likenesses: to the reference, beside BLEU and GLEU, by name.
          grammar: whether the stories are the grammar's and their target is its p(z | x, y).
          seed: of exact samples.
        """
        self._stories, self._vocabulary, self._log_reward = stories, vocabulary, log_reward
        self._baselines, self._likenesses = baselines, likenesses
        self._grammar, self._seed = grammar, seed

    def read(self, x: Int[Array, "N n L"]) -> Infills:
        """The texts of infills."""
        return [[self._vocabulary.decode(row) for row in of_story] for of_story in np.asarray(x)]

    def metrics(self, samples: dict[str, np.ndarray]) -> dict[str, Any]:
        """Of each set, means over stories; prints the first stories with infills and their log r.

        ``log_reward``; ``bleu``, ``gleu`` against the reference and ``self_bleu`` of a story's first 20 infills, these
        three null without nltk; the likenesses to the reference; ``distinct_1``, ``distinct_2`` of a story's infills.
        Where the grammar knows the target, also of exact samples of p(z | x, y) as the set ``grammar``: ``event_tv``,
        the total variation from p(z | x, y) over event slots; ``no_event``, the share of infills that tell none;
        ``event_tv_to_exact``, the total variation from a set of exact samples of the run's own target.
        """
        samples = samples | self._baselines(samples["rtb"].shape[1])
        log_r = {name: self._rewards(x) for name, x in samples.items()}
        texts = {name: self.read(x) for name, x in samples.items()}
        hosts.say("\n".join(self._report(texts, log_r, samples["rtb"].shape[2])))
        found = {name: {"log_reward": log_r[name].mean()} for name in samples}
        if self._grammar:
            rng, count = np.random.default_rng(self._seed), samples["rtb"].shape[1]
            texts["grammar"] = [slots.told(story, rng, count) for story in self._stories]
            found["grammar"] = {}
        for name in found:
            found[name] |= self._of_texts(texts[name]) | self._of_likeness(texts[name])
        if self._grammar:
            events = self._of_events(texts)
            found = {name: values | events[name] for name, values in found.items()}
        return found

    def _rewards(self, x: np.ndarray) -> Float[np.ndarray, "N n"]:
        return np.stack([self._log_reward(of_story, number) for number, of_story in enumerate(x)])

    def _of_texts(self, infills: Infills) -> dict[str, float | None]:
        words = [[split(infill) for infill in of_story] for of_story in infills]
        values: dict[str, float | None] = {
            f"distinct_{n}": float(np.mean([text.distinct(of_story, n) for of_story in words])) for n in (1, 2)
        }
        references = [split(story[3]) for story in self._stories]
        by_nltk = {
            "bleu": lambda: list(map(text.bleu, references, words)),
            "gleu": lambda: list(map(text.gleu, references, words)),
            "self_bleu": lambda: [text.self_bleu(of_story[:SELF_BLEU_INFILLS]) for of_story in words],
        }
        for name, of_stories in by_nltk.items():
            try:
                values[name] = float(np.mean(of_stories()))
            except ImportError:
                values[name] = None
        return values

    def _of_likeness(self, infills: Infills) -> dict[str, float]:
        references = [story[3] for story in self._stories]
        return {name: float(np.mean(list(map(like, references, infills)))) for name, like in self._likenesses.items()}

    def _of_events(self, texts: dict[str, Infills]) -> dict[str, dict[str, float]]:
        names = [story[0].split()[0] for story in self._stories]
        laws = {
            name: [slots.frequencies(*pair) for pair in zip(infills, names, strict=True)]
            for name, infills in texts.items()
        }
        yardsticks = {"event_tv": [slots.truth(story) for story in self._stories]}
        if "exact_again" in laws:
            yardsticks["event_tv_to_exact"] = laws["exact_again"]
        return {
            name: {"no_event": float(np.mean([law["helper"][-1] for law in of_set]))}
            | {key: float(np.mean(list(map(slots.total_variation, of_set, to)))) for key, to in yardsticks.items()}
            for name, of_set in laws.items()
        }

    def _report(self, texts: dict[str, Infills], log_r: dict[str, np.ndarray], length: int) -> list[str]:
        lines = []
        for number, story in enumerate(self._stories[:SHOWN_STORIES]):
            reference = padded([self._vocabulary.encode(story[3])], length, self._vocabulary.pad)
            shown = [("reference", story[3], self._log_reward(reference, number)[0])]
            for name in texts:
                infills = zip(texts[name][number][:SHOWN_INFILLS], log_r[name][number], strict=False)
                shown += [(name, infill, value) for infill, value in infills]
            width = max(len(name) for name, *_ in shown)
            lines += ["", " ".join(story[:3]), f"    ... {story[4]}"]
            lines += [f"    {name:{width}} {value:7.2f} {infill}" for name, infill, value in shown]
        return lines

    def plot(self, path: Path, panels: dict[str, np.ndarray]) -> None:
        """The first stories, one row each, with some infills of every set and the distribution of log r."""
        rows = min(SHOWN_STORIES, len(self._stories))
        figure, axes = plt.subplots(rows, 2, figsize=(12, 3.4 * rows), width_ratios=(3, 2), squeeze=False)
        for number, (left, right) in enumerate(axes):
            story = self._stories[number]
            log_r = {title: self._log_reward(x[number], number) for title, x in panels.items()}
            edges = np.histogram_bin_edges(np.concatenate(list(log_r.values())), bins=40)
            lines = [*textwrap.wrap(" ".join(story[:3]), 90), f"... {story[4]}", f"reference: {story[3]}", ""]
            for title, x in panels.items():
                lines += [f"{title}: {infill}" for infill in self.read(x[number : number + 1, :SHOWN_INFILLS])[0]]
                right.hist(log_r[title], bins=edges, histtype="step", density=True, label=title)
            left.text(0.0, 1.0, "\n".join(lines), va="top", family="monospace", fontsize=7, parse_math=False)
            left.axis("off")
            right.set_xlabel("log r")
        axes[0, 1].legend()
        save(path, figure)
