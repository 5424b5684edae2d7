"""Makes the set that ships with the project out of a larger npz of D4RL's keys.

    python -m experiments.control.embed hopper-medium-replay.npz

Whole episodes, drawn evenly over the file, in half precision, without next observations: those are the next row's.
"""

import argparse
from pathlib import Path

import numpy as np

from experiments.control import transitions
from experiments.files import replacing


def shrink(arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Whole episodes, as large a share of them as ``count`` is of the transitions, taken evenly over the file."""
    spans = transitions.episodes_of(np.asarray(arrays["terminals"]) | np.asarray(arrays["timeouts"]))
    share = min(1.0, count / spans[-1][1])
    taken = np.floor(share * np.arange(len(spans) + 1))
    rows = np.concatenate([np.arange(*span) for span, a, b in zip(spans, taken, taken[1:], strict=False) if b > a])
    halves = {name: arrays[name][rows].astype(np.float16) for name in ("observations", "actions", "rewards")}
    return halves | {name: arrays[name][rows] for name in ("terminals", "timeouts")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an npz file of D4RL's keys")
    parser.add_argument("--transitions", type=int, default=100_000, help="about so many")
    parser.add_argument("--to", type=Path, default=transitions.EMBEDDED, help="the npz file to write")
    arguments = parser.parse_args()
    arrays = transitions.read_npz(arguments.source)
    transitions.check(arrays, arguments.source.name)
    with replacing(arguments.to) as partial:
        np.savez_compressed(partial, **shrink(arrays, arguments.transitions))
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
