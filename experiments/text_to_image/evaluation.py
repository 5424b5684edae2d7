"""Sets of pictures in numbers and to look at: reward, alignment with the prompt, diversity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from experiments.plots import plt, save
from experiments.text_to_image.rewards import PictureReward, to_unit
from rtbjax.metrics.distances import diversity

ROWS, COLUMNS = 4, 5  # Pictures shown of each set; of several prompts a row for each.
BATCH = 100  # Latents decoded at once.


class Evaluation:
    """Metrics of sets of latents ``[n, *E]``, or ``[P, n, *E]`` of P prompts, and a picture of some."""

    def __init__(
        self,
        prompts: Sequence[str],
        decode: Callable[[Array], Array],
        reward: PictureReward,
        first_choice: Callable[[Array], np.ndarray],
        embedding: Callable[[Array], Array],
    ):
        """Prepares to evaluate.

        Args:
          prompts: P.
          decode: latents to pictures.
          reward: log r of pictures.
          first_choice: see `experiments.text_to_image.rewards.alignment`.
          embedding: pictures to vectors, ``f32[B, D]``, whose cosine distance is the diversity.
        """
        self._prompts, self._decode, self._reward = prompts, decode, reward
        self._first_choice, self._embedding = first_choice, embedding

    def metrics(self, samples: dict[str, np.ndarray]) -> dict[str, Any]:
        """``log_reward``, ``accuracy`` and ``diversity`` of every set: of one prompt, or means and each prompt's.

        ``accuracy`` is how often the contrastive model finds no text more probable than the prompt, ``diversity`` the
        mean cosine distance of pairs of pictures of one prompt.
        """
        kept = {name: x for name, x in samples.items() if name != "exact_again"}
        if len(self._prompts) == 1:
            return {name: self._of_one(x, 0) for name, x in kept.items()}
        each = [
            {name: self._of_one(x[place], place) for name, x in kept.items()} for place in range(len(self._prompts))
        ]
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *each)
        named = zip(self._prompts, each, strict=True)
        return mean | {"per_condition": [{"condition": prompt} | one for prompt, one in named]}

    def _of_one(self, z: np.ndarray, place: int) -> dict[str, float]:
        parts = [self._of_batch(z[first : first + BATCH], place) for first in range(0, len(z), BATCH)]
        log_r, chosen, vectors = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {
            "log_reward": float(log_r.mean()),
            "accuracy": float(np.mean(chosen == place)),
            "diversity": diversity(vectors),
        }

    def _of_batch(self, z: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = self._decode(z)
        asked = np.full(len(z), place)
        return self._reward(x, asked), self._first_choice(x), np.asarray(self._embedding(x))

    def plot(self, path: Path, panels: dict[str, np.ndarray]) -> None:
        """Pictures of every set, by title, each above its log r."""
        single = len(self._prompts) == 1
        rows = ROWS if single else len(self._prompts)
        figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 1.1 * rows + 0.8), squeeze=False)
        for axis, (title, z) in zip(axes.flat, panels.items(), strict=True):
            shown = [z[row * COLUMNS :][:COLUMNS] for row in range(rows)] if single else [one[:COLUMNS] for one in z]
            mean = self._show(axis, [one for one in shown if len(one)])
            axis.set_title(f"{title}: mean log r of these {mean:.2f}", fontsize=10)
            axis.axis("off")
        figure.suptitle(self._prompts[0] if single else "; ".join(self._prompts), fontsize=11, parse_math=False)
        save(path, figure)

    def _show(self, axis: Any, rows: list[np.ndarray]) -> float:
        """Draws rows of pictures with their log r, and returns its mean over them."""
        single, every = len(self._prompts) == 1, []
        for row, z in enumerate(rows):
            x = self._decode(z)
            log_r = self._reward(x, np.full(len(z), 0 if single else row))
            every.append(log_r)
            for column, (picture, value) in enumerate(zip(to_unit(x), log_r, strict=True)):
                left, top = 1.1 * column, 1.35 * row
                axis.imshow(picture, extent=(left, left + 1.0, top + 1.0, top), interpolation="nearest")
                axis.text(left + 0.5, top + 1.04, f"{value:.1f}", ha="center", va="top", fontsize=7)
        axis.set_xlim(-0.05, 1.1 * COLUMNS)
        axis.set_ylim(1.35 * (ROWS if single else len(rows)), -0.05)
        axis.set_aspect("equal")
        return float(np.concatenate(every).mean())
