"""What the documents say must be so: their code runs, and every test and file they name exists."""

import ast
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from machine import environment

import rtbjax
from configs import mnist
from experiments import batches
from rtbjax.nets import pretrained

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language, document=ROOT / "README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def run(code):
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_example_gives_a_certificate_in_ten_lines():
    example = blocks("python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    printed = run(example + "\nassert jnp.isfinite(gradient['policy']['pull']) and gradient['policy']['pull'] != 0")
    log_z, verdict = re.search(r"Certificate\(log_z_is=(\S+),.* verdict='(\w+)', reason=.*\)", printed).groups()
    assert verdict == "coverage_unchecked"  # No reference is given.
    # The prior's ends are N(0, v) by the recursion of its variance; under them E exp(-(x - 1)^2) in closed form, twice.
    spread = 1 + 2 * 0.25 * sum(0.81**k for k in range(20))
    assert abs(float(log_z) + math.log(spread) + 2 / spread) < 0.2  # The standard error is 0.1.


def test_every_block_runs_in_order():
    """Five steps do not train a network and 64 paths are few: the weights say nothing, and say so."""
    assert run("\n".join(blocks("python"))).split()[-1] == "unreliable"


GUIDES = sorted((ROOT / "docs" / "howto").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs_and_its_assertions_hold(guide):
    run("\n".join(blocks("python", guide)))


def test_commands_are_the_ones_ci_runs():
    install, test = blocks("bash")
    assert install.splitlines() == ["pip install -e .", "python experiments/run.py --config=configs/mnist.py"]
    assert test.strip() == 'pip install -e ".[test]" && pytest'
    assert test.strip() in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_verdicts_has_the_words_that_runs_and_reports_have():
    from rtbjax.certificate import VERDICTS

    section = (ROOT / "README.md").read_text().split("## Reading the certificate")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [(name, *words) for name, words in VERDICTS.items()]


@pytest.mark.parametrize("package", [rtbjax, pretrained], ids=lambda package: package.__name__)
def test_every_public_name_has_a_place_in_the_reference(package):
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    public = [value for name, value in vars(package).items() if not name.startswith("_")]
    defined = {value.__module__ for value in public if isinstance(value, type | FunctionType)}
    assert defined and defined <= shown


@pytest.mark.parametrize("devices", [64, 16])
def test_the_batches_of_the_commands_for_pods_divide_over_their_devices(devices):
    config, found = mnist.get_config(), (ROOT / "docs" / "tpu_pods.md").read_text()
    sizes = re.findall(r"--config\.(\w+\.batch_size)=(\d+)", found)
    assert {name for name, _ in sizes} == {"train.batch_size", "eval.batch_size"}
    config.update_from_flattened_dict({name: int(size) for name, size in sizes})
    batches.check_devices(config, devices)


def test_variants_are_those_of_the_configs():
    rows = re.findall(r"^\| `configs/(\w+)\.py` \|.*\|([^|]*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.stem for path in (ROOT / "configs").glob("*.py")} - {
        "base",
        "published",
        "__init__",
    }
    for name, variants in rows:
        module = importlib.import_module(f"configs.{name}")
        assert re.findall(r"`(\w+)`", variants) == list(filter(None, module.VARIANTS))


def defined_tests(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_named_test_exists(document):
    named = re.findall(r"(test_\w+\.py)::(\w+)", document.read_text())
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / "tests" / file).exists() or name not in defined_tests(ROOT / "tests" / file)
    ]
    assert not missing
    if document.name == "method.md":
        assert named


def test_every_name_of_the_library_that_is_written_somewhere_exists_after_import_rtbjax():
    """In documents, notebooks and docstrings; in a fresh interpreter, where no other test has imported a module."""
    sources = [*DOCUMENTS, *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "rtbjax").rglob("*.py")]
    written = {name for path in sources for name in re.findall(r"\brtbjax(?:\.[A-Za-z_]\w*)+", path.read_text())}
    assert {"rtbjax.behaviour.accept", "rtbjax.nets.mlp", "rtbjax.losses.reinforce"} <= written
    code = "import operator, rtbjax\n" + "\n".join(
        f"operator.attrgetter({name.removeprefix('rtbjax.')!r})(rtbjax)" for name in sorted(written)
    )
    run(code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_linked_file_exists(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]
