"""What pip installs from the built wheel works without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_an_installed_wheel_is_typed_and_runs_from_anywhere(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "rtbjax", source / "rtbjax")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", source], check=True, timeout=300)
    (wheel,) = tmp_path.glob("rtbjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rtbjax/py.typed" in names and any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if not name.startswith("rtbjax-")} == {"rtbjax"}
    subprocess.run([*pip, "install", "--no-deps", f"--target={tmp_path / 'site'}", wheel], check=True, timeout=300)
    script = "import rtbjax; print(rtbjax.__file__, rtbjax.brownian_bridge(3).num_steps)"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(tmp_path / "site" / "rtbjax" / "__init__.py"), "3"], done.stderr
