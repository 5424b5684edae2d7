"""The checker that CI trusts finds what is missing."""

import json

import numpy as np
import pytest
import safetensors.numpy
from check_workdir import CERTIFICATE, CONFIG, METRICS, OPTIONAL, REFERENCE, problems

from experiments import report


def nested(names, value=0):
    tree = {}
    for name in names:
        *sections, last = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    return tree


@pytest.fixture
def workdir(tmp_path):
    config = nested(CONFIG)
    config["train"]["steps"] = 20
    metrics = {group: dict.fromkeys(METRICS["gmm"]["names"], 0.1) for group in METRICS["gmm"]["sets"]}
    summary = {
        "domain": "gmm",
        "data_source": "none",
        "steps": 20,
        "finished": "today",
        "seconds": {"compile": 1.0, "train": 2.0, "total": 3.0},
        "certificate": dict.fromkeys(CERTIFICATE, 0.5)
        | {
            "log_z_is_ci": [0.4, 0.6],
            "log_z_reference_ci": [0.5, 0.5],
            "log_z_reference_source": "a closed form",
            "verdict": "consistent",
            "reason": "ESS is 50.0%, path-KL 0.100 nats",
        },
        "metrics": metrics,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    lines = (json.dumps({"step": step, "loss": 1.0, "skipped": 0}) + "\n" for step in (10, 20))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    report.write(tmp_path, config, summary, "About.")
    safetensors.numpy.save_file({"w": np.zeros(1)}, tmp_path / "final_params.safetensors")
    return tmp_path


def test_a_complete_workdir_has_no_problems(workdir):
    assert problems(workdir) == []


@pytest.mark.parametrize(
    "file, old, new, complaint",
    [
        ("config.json", '"beta"', '"beat"', "no objective.beta"),
        ("summary.json", '"consistent"', '"fine"', "'fine' is none of"),
        ("summary.json", '"elbo"', '"elb"', "no elbo"),
        ("summary.json", '"mode_tv": 0.1', '"mode_tv": null', "mode_tv is no number"),
        ("summary.json", '"elbo": 0.5', '"elbo": null', "certificate.elbo is no number"),
        ("summary.json", '"ess": 0.5', '"ess": "0.5"', "certificate.ess is no number"),
        ("summary.json", "[0.4, 0.6]", "null", "certificate.log_z_is_ci is no interval"),
        ("summary.json", "[0.4, 0.6]", "[0.6, 0.4]", "certificate.log_z_is_ci is no interval"),
        ("summary.json", '"path_kl": 0.5', '"path_kl": null', "path_kl is null, but there is a reference"),
        ("summary.json", '"train": 2.0', '"train": null', "seconds.train is no number"),
        ("summary.json", '"steps": 20', '"steps": 10', "10 steps"),
        ("summary.json", '"mode_tv": 0.1,', '"mode_tv": 0.1, "new": 1,', "report.html does not say what new is"),
        ("metrics.jsonl", '"step": 20', '"step": 15', "rise to step 20"),
        ("metrics.jsonl", '"loss": 1.0', '"loss": null', "no finite loss at step 10"),
        ("samples.png", "PNG", "JPG", "not a PNG"),
        (
            "summary.json",
            '"mode_tv": 0.1',
            '"mode_tv": 0.2',
            "report.html says 0.1 of metrics.rtb.mode_tv, which is 0.2",
        ),
        ("report.html", "<!DOCTYPE html>", "", "no document type"),
        ("report.html", "</dl>", "", "ends what did not start"),
        ("report.html", 'href="data:,"', 'href="icon.png"', "loads icon.png"),
        ("report.html", 'data-name="certificate.elbo"', "", "report.html says nan of certificate.elbo"),
    ],
)
def test_what_is_wrong_is_named(workdir, file, old, new, complaint):
    content = (workdir / file).read_bytes()
    assert old.encode() in content
    (workdir / file).write_bytes(content.replace(old.encode(), new.encode()))
    assert any(complaint in sentence for sentence in problems(workdir))


@pytest.mark.parametrize(
    "file", ["config.json", "final_params.safetensors", "samples.png", "report.html", "checkpoints/20"]
)
def test_what_is_missing_is_named(workdir, file):
    path = workdir / file
    path.rmdir() if path.is_dir() else path.unlink()
    assert problems(workdir) == [f"{file.replace('20', '')} is missing"]


def test_values_that_need_not_exist_may_be_null(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    certificate = summary["certificate"] | dict.fromkeys((*OPTIONAL, *REFERENCE))
    (workdir / "summary.json").write_text(json.dumps(summary | {"certificate": certificate}))
    assert problems(workdir) == ["verdict 'consistent' needs a reference"]
    certificate["verdict"] = "coverage_unchecked"
    (workdir / "summary.json").write_text(json.dumps(summary | {"certificate": certificate}))
    assert problems(workdir) == []


def test_a_certificate_of_nulls_is_none(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    nulls = dict.fromkeys(CERTIFICATE) | {"verdict": "consistent"}
    (workdir / "summary.json").write_text(json.dumps(summary | {"certificate": nulls}))
    named = " ".join(problems(workdir))
    assert all(
        f"certificate.{name} is no" in named for name in set(CERTIFICATE) - {"verdict", "reason", *OPTIONAL, *REFERENCE}
    )


def test_selected_samples_have_no_verdict_and_say_why(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    for reason, complaints in (
        ("they have no weights", []),
        (None, ["certificate has neither a verdict nor a reason"]),
    ):
        certificate = dict.fromkeys(CERTIFICATE) | {"reason": reason}
        (workdir / "summary.json").write_text(json.dumps(summary | {"certificate": certificate}))
        assert problems(workdir) == complaints


def test_nan_is_not_json(workdir):
    (workdir / "summary.json").write_text('{"domain": NaN}')
    with pytest.raises(ValueError, match="NaN is not JSON"):
        problems(workdir)


def test_a_step_that_was_skipped_needs_no_loss(workdir):
    log = workdir / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": 1.0, "skipped": 0}', '"loss": null, "skipped": 3}', 1))
    assert not problems(workdir)
    log.write_text(log.read_text().replace('"loss": 1.0, "skipped": 0', '"loss": null, "skipped": 3'))
    assert problems(workdir) == ["metrics.jsonl has no finite loss at step 20"]
