"""Bad commands are one sentence; hints can be pasted."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from machine import environment
from shrunk import gmm

from configs import inverse
from experiments import records, run
from experiments.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = [f"configs/{name}.py" for name in ("cifar10", "d4rl", "gmm", "inverse", "mnist", "stories", "text_to_image")]


def call(*arguments):
    command = [sys.executable, "experiments/run.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/gmm.py", "--config.train.stepz=3"], "no field 'stepz'; did you mean 'steps'?"),
        (["--config=configs/gmm.py", "--config.train.steps=abc"], "train.steps must be a whole number, got 'abc'."),
        (
            ["--config=configs/gmm.py:huge"],
            "configs/gmm.py:huge cannot be loaded: configs/gmm.py has no variant 'huge'",
        ),
        (["--config=configs/gm.py"], "there is no config configs/gm.py; there are configs/gmm.py, configs/"),
        (["--config=nowhere.py:smoke"], f"there is no config nowhere.py; there are {', '.join(CONFIGS)}."),
        ([], f"--config is required, one of {', '.join(CONFIGS)}."),
        (
            ["--config=configs/gmm.py", "--config.data.path=none.npz"],
            "config.data.path=none.npz: there is no such file or folder",
        ),
        (["--config=configs/gmm.py", "train.steps=3"], "'train.steps=3' is no flag; fields of the config are set by"),
        (
            ["--config=configs/gmm.py", "--config.domain=audio"],
            "must be one of gmm, images, inverse, control, stories, text_to_image, got 'audio'",
        ),
        (
            ["--config=configs/gmm.py", "--config.eval.batch_size=501"],
            "eval.batch_size=501 does not divide over 2 devices",
        ),
        (["--config=configs/gmm.py", "--config.prior.weights=none", "--workdir={tmp}/runs/w"], "no weights file"),
        (["--config=configs/gmm.py", "--mode=evaluate", "--workdir={tmp}/runs/w"], "train it first"),
        (["--config=configs/gmm.py", "--workdir={tmp}/claimed"], "--workdir={tmp}/claimed-2"),
    ],
)
def test_a_bad_command_line_is_one_sentence_and_writes_nothing(arguments, message, tmp_path):
    records.claim(tmp_path / "claimed", gmm(tmp_path).to_dict())
    done = call(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode != 0
    assert message.format(tmp=tmp_path) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["claimed"]


def test_help_is_no_failure():
    done = call("--help")
    assert done.returncode == 0 and not done.stderr
    assert "--config.FIELD=VALUE" in done.stdout and "--workdir" in done.stdout


def test_in_another_folder_the_repositorys_config_is_named_in_full(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", "--config=configs/gmm.py:smoke"])
    named = f"there is no config configs/gmm.py in this folder; the repository's is {REPOSITORY}/configs/gmm.py."
    assert run.explain("anything") == named


@pytest.mark.parametrize(
    "said, sentence",
    [
        (
            "flag --config.train.steps=1.5: invalid literal for int() with base 10: '1.5'",
            "config.train.steps must be a whole number, got '1.5'.",
        ),
        (
            "flag --config.train.learning_rate=x: could not convert string to float: 'x'",
            "config.train.learning_rate must be a number, got 'x'.",
        ),
        (
            "flag --config.eval.recompute_exact=maybe: ('Non-boolean argument to boolean flag', 'maybe')",
            "config.eval.recompute_exact must be true or false, got 'maybe'.",
        ),
        (
            "flag --config.prior=3: Failed to parse '3' as a ConfigDict: `3` is not a dict.",
            "config.prior must be a section, whose fields are set one by one, got '3'.",
        ),
        (
            "Configuration is not available because of an earlier failure to load: Path to config file is an empty "
            "string.",
            run.config_required(),
        ),
    ],
)
def test_an_ill_typed_field_is_named_with_its_value_and_what_is_allowed(said, sentence):
    assert run.explain(said) == sentence


@pytest.mark.parametrize(
    "given, said",
    [
        ("configs/gmm.py", "two and a half minutes on two cores"),
        ("configs/gmm.py:smoke", "the whole path in about a minute"),
        (f"{REPOSITORY}/configs/gmm.py:smoke", "the whole path in about a minute"),
        ("configs/mnist.py:value", None),  # Only beside --mode=pretrain.
        ("configs/nope.py", None),
        ("", None),
    ],
)
def test_a_header_says_how_long_a_command_takes(given, said, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert run.header(given) == said


def test_every_command_of_a_header_says_how_long_it_takes():
    """Or that nobody knows; those that only change a field take as long as without."""
    said = [
        line
        for path in (REPOSITORY / "configs").glob("*.py")
        for line in re.findall(r"^ +python experiments/run\.py --config=\S+ {2,}.*$", path.read_text(), re.MULTILINE)
    ]
    timed = r"minutes?|hours?|\d s of|not measured|for an accelerator"
    assert len(said) > 20 and [line for line in said if not re.search(timed, line)] == []


def test_what_is_to_be_done_is_told_before_it_starts(tmp_path):
    config = gmm(tmp_path)
    assert run.plan(config) == "To do: 4 steps of 32 paths, then 64 fresh paths for each certificate."
    config.train.steps = 0
    assert run.plan(config) == "To do: no training, then 64 fresh paths for each certificate."


def test_the_command_elsewhere_is_the_same_command_with_a_free_workdir(monkeypatch, tmp_path):
    (tmp_path / "w-2").mkdir()
    given = ["experiments/run.py", "--config=configs/mnist.py", "--config.reward.label=even"]
    for workdir in ([f"--workdir={tmp_path}/w"], ["--workdir", f"{tmp_path}/w"]):
        monkeypatch.setattr(sys, "argv", [given[0], *workdir, *given[1:]])
        assert shlex.split(run.command_elsewhere(tmp_path / "w")) == ["python", *given, f"--workdir={tmp_path}/w-3"]


def test_a_defect_keeps_its_traceback(monkeypatch):
    def defect(_argv):
        raise ValueError("shapes differ")

    monkeypatch.setattr(run, "run", defect)
    with pytest.raises(ValueError, match="shapes differ"):
        run.main([])


def test_pretraining_has_a_folder_of_its_own_for_each_thing_it_makes(tmp_path):
    small = [
        "--config=configs/gmm.py:smoke",
        "--mode=pretrain",
        "--config.pretrain.steps=2",
        "--config.pretrain.batch_size=8",
        f"--workdir={tmp_path}/w",
    ]
    done = call(*small)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "w" / "pretrain" / "prior"
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["pretrain"]
    assert json.loads((folder / "config.json").read_text())["pretrain"]["steps"] == 2
    weights = folder / "gmm_prior.safetensors"
    # The hint is absolute: paths in a config are relative to the repository, a workdir is to the current folder.
    assert f"--config.prior.weights={weights.resolve()}" in done.stdout
    before = weights.read_bytes()
    done = call(*small, "--config.pretrain.learning_rate=1.0")
    assert done.returncode != 0 and "pretrain.learning_rate: 0.002 there, 1.0 here" in done.stderr
    assert weights.read_bytes() == before


def test_a_domain_that_trains_nothing_beforehand_says_whose_prior_it_has(tmp_path):
    with pytest.raises(ConfigError, match=r"its prior is that of configs/mnist\.py, which --mode=pretrain makes there"):
        run.pretrain(inverse.get_config(), tmp_path / "w")
    assert not (tmp_path / "w").exists()
