"""What samples say of an image that was measured: mean, spread where nothing was seen, calibration."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.domains.base import Samples
from experiments.inverse.problem import Problems
from experiments.plots import plt, save
from rtbjax import inverse
from rtbjax.metrics import calibration

SHOWN = 3  # Problems in the picture,
DRAWS = 6  # and samples of each.


class Evaluation:
    """Metrics and picture of the evaluated problems, N of them; sets of samples are ``[N, n, H, W, C]``."""

    def __init__(self, problems: Problems):
        self._problems = problems
        operator, noise = problems.operator, problems.noise
        self._log_r = jax.jit(lambda y, x: inverse.log_likelihood(operator, y[None], x, noise).mean())

    def metrics(self, samples: Samples) -> dict[str, Any]:
        """Of each set; and of several problems whose truths are the prior's, the calibration of all but the prior."""
        sets = {name: self._leading(x) for name, x in samples.items() if name != "exact_again"}
        found: dict[str, Any] = {name: self._of_set(x) for name, x in sets.items()}
        if self._problems.of_prior and len(self._problems.y) > 1:
            references = sets["prior"][:, 0]
            # A sample of its own as the reference would rank every truth of the prior too high.
            found["calibration"] = {n: self._calibration(x, references) for n, x in sets.items() if n != "prior"}
        return found

    def _leading(self, x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 5 else x[None]

    def _of_set(self, x: Float[np.ndarray, "N n H W C"]) -> dict[str, float | None]:
        """``misfit`` is in units of the noise, 1 for an image that was measured; ``error`` that of the mean."""
        truth, seen = self._problems.truth, self._problems.operator.seen
        operator, noise = self._problems.operator, self._problems.noise
        log_r = float(np.mean([self._log_r(y, one) for y, one in zip(self._problems.y, x, strict=True)]))
        squares = 2.0 * (inverse.log_bound(operator, noise) - log_r) / operator.measured.sum()
        std = x.std(axis=1, ddof=1)
        return {
            "log_reward": log_r,
            "misfit": float(np.sqrt(squares)),
            "error": None if truth is None else float(np.sqrt(np.mean((x.mean(axis=1) - truth) ** 2))),
            "std_seen": float(std[:, seen].mean()),
            "std_missing": None if seen.all() else float(std[:, ~seen].mean()),
        }

    def _calibration(self, x: np.ndarray, references: np.ndarray) -> dict[str, Any]:
        """``tarp`` of whole images, and ``ranks`` of the brightness of what is missing (of all, if nothing is)."""
        truth, seen = self._problems.truth, self._problems.operator.seen
        assert truth is not None
        part = np.ones_like(seen) if seen.all() else ~seen
        count = len(truth)
        tarp = calibration.tarp(
            truth.reshape(count, -1), x.reshape(count, x.shape[1], -1), references.reshape(count, -1)
        )
        ranks = calibration.ranks(truth[:, part].mean(axis=1), x[:, :, part].mean(axis=2))
        return {name: calibration.coverage(one).to_dict() for name, one in (("tarp", tarp), ("ranks", ranks))}

    def plot(self, path: Path, panels: Samples) -> None:
        """For the first problems a row of each set: truth, measurement, mean, standard deviation, samples."""
        rows = [
            (number, title, x[number])
            for number in range(min(SHOWN, len(self._problems.y)))
            for title, x in ((title, self._leading(x)) for title, x in panels.items())
        ]
        columns = 4 + DRAWS
        figure, axes = plt.subplots(len(rows), columns, figsize=(1.3 * columns, 1.45 * len(rows)), squeeze=False)
        truth, y = self._problems.truth, np.asarray(self._problems.y)
        for line, (number, title, x) in zip(axes, rows, strict=True):
            pictures = [None if truth is None else truth[number], None, x.mean(axis=0), None, *x[:DRAWS]]
            for axis, picture in zip(line, pictures, strict=False):
                axis.set_xticks([])
                axis.set_yticks([])
                if picture is not None:
                    show(axis, picture, -1.0, 1.0)
            show(line[1], y[number], *((-1.0, 1.0) if y.min() < 0.0 else (0.0, y.max())))
            show(line[3], x.std(axis=0, ddof=1).mean(axis=-1, keepdims=True), 0.0, 0.8, "magma")
            line[0].set_ylabel(title, fontsize=8)
        names = ("truth", "measurement", "mean", "std", *(f"sample {n + 1}" for n in range(DRAWS)))
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(name, fontsize=8)
        save(path, figure)


def show(axis, picture: Float[np.ndarray, "H W C"], low: float, high: float, colours: str = "gray") -> None:
    """One channel by a map of colours, three as colours, from ``low`` to ``high``."""
    scaled = np.clip((picture - low) / (high - low), 0.0, 1.0)
    axis.imshow(scaled if picture.shape[-1] == 3 else scaled[..., 0], cmap=colours, vmin=0.0, vmax=1.0)
