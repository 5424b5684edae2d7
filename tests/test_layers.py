"""The layers of the package, read from its imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

import rtbjax

ROOT = pathlib.Path(rtbjax.__file__).parent
# A module may import what stands in an earlier row.
LAYERS = [
    {"types"},
    {"kernels"},
    {"schedules"},
    {"process"},
    {"trajectory"},
    {"guidance", "smc", "behaviour", "posterior", "certificate"},
    {"objective"},
    {"train"},
]
LEAVES = {"losses", "partition", "replay", "lora", "rewards", "inverse", "sharding", "nets", "metrics"}
LEAVES_USED_BY = {
    "posterior": {"lora"},
    "objective": {"losses", "partition"},
    "train": {"sharding"},
}
FORBIDDEN = {"absl", "ml_collections", "orbax", "tensorflow_datasets", "tensorflow", "matplotlib", "experiments"}


def module_of(path):
    """The layer a file belongs to: ``process`` for ``rtbjax/process/vp.py``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(source):
    """Every absolute module name a source imports anywhere in it; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer they reach"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(module):
    if module in LEAVES:
        return {"types", module}
    rank = next(i for i, layer in enumerate(LAYERS) if module in layer)
    return set.union({module}, *LAYERS[:rank], LEAVES_USED_BY.get(module, set()))


def violations(module, source):
    """What a module of this name imports from the package that it may not."""
    reached = {name.split(".")[1] for name in imports_of(source) if name.startswith("rtbjax.")}
    whole = {"rtbjax itself"} if "rtbjax" in set(imports_of(source)) else set()
    return reached - allowed(module) | whole


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_from_its_right(path):
    assert not violations(module_of(path), path.read_text())


def test_every_leaf_that_a_module_may_use_is_used():
    used = {module: set() for module in LEAVES_USED_BY}
    for path in FILES:
        reached = {name.split(".")[1] for name in imports_of(path.read_text()) if name.startswith("rtbjax.")}
        used.get(module_of(path), set()).update(reached & LEAVES)
    assert used == LEAVES_USED_BY


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES} <= LEAVES.union(*LAYERS)
    assert len(FILES) > 20


@pytest.mark.parametrize(
    "module, source",
    [
        ("kernels", "from rtbjax.process import Process"),
        ("process", "def f():\n    import rtbjax.train"),
        ("losses", "from rtbjax import objective"),
        ("losses", "from rtbjax.kernels import Gaussian"),
        ("behaviour", "from rtbjax.posterior import lora"),
        ("posterior", "from rtbjax import losses"),
        ("trajectory", "import rtbjax"),
    ],
)
def test_a_wrong_import_would_be_found(module, source):
    assert violations(module, source)
    assert not violations("train", "from rtbjax.process.vp import ddpm\nfrom rtbjax import objective, sharding")


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_names_no_application_package(path):
    assert not {name.split(".")[0] for name in imports_of(path.read_text())} & FORBIDDEN


def test_importing_rtbjax_loads_no_application_package_and_warns_of_nothing():
    """Beyond what JAX, Flax, optax and chex load by themselves (the last two load absl)."""
    script = """
import sys
import chex, jax, flax.linen, flax.struct, jaxtyping, optax, scipy.linalg, scipy.stats
before = set(sys.modules)
import rtbjax, rtbjax.nets.unet, rtbjax.metrics.distances, rtbjax.replay, rtbjax.behaviour
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} | before.intersection(%r)))
""" % (FORBIDDEN - {"absl"})
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=300,
        check=True,
    )
    loaded = set(result.stdout.split())
    assert "rtbjax" in loaded and not loaded & FORBIDDEN, loaded
