"""Finished runs in one table and on one page."""

import base64
import re
import sys

import pytest
from check_workdir import Page
from workdirs import CONFIG, LINES, SUMMARY, changed, leave

from experiments import charts, side_by_side
from experiments.errors import UserError


@pytest.fixture
def runs(tmp_path):
    """Two runs; the second has another certificate, beta, and one metric less."""
    second = changed(path_kl=0.25, eubo=None, verdict="consistent") | {"metrics": {"rtb": {"log_reward": -5.0}}}
    config = CONFIG | {"objective": {"beta": 3.0}}
    lines = [{"step": line["step"], "loss": 2 * line["loss"]} for line in LINES]
    return [leave(tmp_path / "first"), leave(tmp_path / "second", second, config, lines)]


def cells(table):
    """Lines of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: rest for first, *rest in lines}


def test_the_table_has_the_numbers_of_every_run(runs, tmp_path):
    found = cells(side_by_side.write(runs, tmp_path / "out"))
    assert found[""] == [str(run) for run in runs]
    assert found["verdict"] == ["`importance_weight`", "`consistent`"]
    assert found["path_kl"] == ["0.9", "0.25"] and found["eubo"] == ["-0.5", ""]
    assert found["rtb.log_reward"] == ["-1e-07", "-5"] and found["prior.log_reward"] == ["-3", ""]
    assert not [name for name in found if "classes" in name or "state 7" in name]  # One condition's, one kind's.
    assert cells((tmp_path / "out" / "side_by_side.md").read_text()) == found


def test_the_page_has_them_too_with_overlaid_curves_and_what_differs(runs, tmp_path):
    side_by_side.write(runs, tmp_path / "out")
    text = (tmp_path / "out" / "side_by_side.html").read_text()
    page = Page(text)
    assert not page.wrong and not page.loads
    assert page.numbers["path_kl"] == (0.25, "0.25") and page.numbers["rtb.log_reward"] == (-5.0, "-5")
    drawn = [base64.b64decode(data).decode() for data in re.findall('svg.xml;base64,([^"]+)', text)]
    # The loss of both, and log Z, which the second has not logged.
    assert [[colour in svg for colour in charts.COLOURS[:2]] for svg in drawn] == [[True, True], [True, False]]
    assert text.count("data:image/png") == 2
    differ = page.text.split("Settings that differ")[1].split("Training")[0]
    assert "objective.beta" in differ and "2.0" in differ and "3.0" in differ and "num_steps" not in differ


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["first", "unfinished"], "unfinished holds a run that has not finished: let its command finish it"),
        (["first", "nowhere"], "nowhere holds no run."),
        (["first", "first/../first"], "at least two runs, each named once"),
        (["first"], "at least two runs"),
        (["first", "damaged"], "damaged/summary.json is incomplete"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(
    runs, tmp_path, monkeypatch, arguments, message
):
    (leave(tmp_path / "unfinished") / "summary.json").unlink()
    leave(tmp_path / "damaged", SUMMARY | {"certificate": {}})
    workdirs = [str(tmp_path / name) for name in arguments]
    monkeypatch.setattr(sys, "argv", ["side_by_side", *workdirs, f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as stopped:
        side_by_side.main()
    assert message in stopped.value.code and len(stopped.value.code.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_of_folders_are_text(tmp_path):
    named = [leave(tmp_path / name) for name in ("a|b <script>", "c")]
    text = side_by_side.write(named, tmp_path / "out")
    assert "a\\|b <script> |" in text.splitlines()[0]
    page = Page((tmp_path / "out" / "side_by_side.html").read_text())
    assert "script" not in page.tags and "a|b <script>" in page.text and not page.wrong


def test_a_run_without_a_picture_is_told_apart_from_a_defect(runs, tmp_path):
    (runs[1] / "samples.png").unlink()
    with pytest.raises(UserError, match="second/samples.png cannot be read .*--mode=evaluate makes it anew"):
        side_by_side.write(runs, tmp_path / "out")
