"""The benchmark runs, and its table and JSON agree. With PyTorch it also checks that both networks are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_gmm_step(tmp_path):
    command = [
        sys.executable,
        "benchmarks/gmm_step.py",
        "--rounds=1",
        "--steps=1",
        f"--out={tmp_path / 'a' / 'b.json'}",
    ]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # One device, as a user has.
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a" / "b.json").read_text())
    assert all(name in done.stdout for name in result["seconds"])
    assert result["bytes"]["1000"]["temporary"] <= 1.05 * result["bytes"]["100"]["temporary"]
    assert ("eager PyTorch" in result["seconds"]) == (result["versions"]["torch"] is not None)
