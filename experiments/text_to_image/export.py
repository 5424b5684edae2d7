"""Writes the adapters of a finished run of configs/text_to_image.py as diffusers loads them.

    python -m experiments.text_to_image.export runs/text_to_image

In Python, ``pipeline.load_lora_weights("runs/text_to_image/lora")``. Learned step variances are no part of it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments import loop, records
from experiments.domains import text_to_image
from experiments.errors import UserError, checking
from rtbjax.nets.pretrained import adapters


def export(workdir: Path) -> Path:
    """Writes ``lora/`` into the workdir and returns the file.

    Raises:
      UserError: there is no finished run of this domain.
    """
    config = records.config_of(workdir, "text_to_image", "configs/text_to_image.py")
    with checking():
        domain = text_to_image.build(config)
    params: Any = loop.restore(config, domain, workdir).params
    return adapters.save(
        workdir / "lora", params["base"] if config.posterior.learn_variance else params, domain.prior.params
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of a finished run")
    try:
        print(export(parser.parse_args().workdir))
    except UserError as error:
        sys.exit(f"rtbjax: {error}")


if __name__ == "__main__":
    main()
