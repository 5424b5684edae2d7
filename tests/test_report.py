"""The report of a run: a page that shows what was measured, whatever the texts in it say."""

import html
import re
import shutil
import subprocess

import pytest
from check_workdir import Page, report_problems
from workdirs import CERTIFICATE, CONFIG, LINES, SUMMARY, changed, leave

from experiments import charts, pages, records, report
from rtbjax.certificate import VERDICTS

UNCERTIFIED = dict.fromkeys(CERTIFICATE) | {
    "log_z_is": -1.5,
    "log_z_is_ci": [-1.6, -1.4],
    "log_z_reference": -1.1,
    "log_z_reference_ci": [-1.15, -1.05],
    "log_z_reference_source": "4000 prior samples",
    "reason": "particles have no weights",
}
HOSTILE = "</code><script>alert(1)</script><img src='http://x/'> & \" ' \0\ud800 ]]> --> {{7*7}} \u202e"


@pytest.fixture
def written(tmp_path):
    """Writes a report and gives its text."""

    def write(summary=SUMMARY, config=CONFIG, about="What it is.", lines=LINES):
        leave(tmp_path, summary, config, lines)
        report.write(tmp_path, config, summary, about)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.mark.parametrize(
    "summary",
    [
        SUMMARY,
        changed(per_condition=[CERTIFICATE | {"condition": "even"}, CERTIFICATE | {"condition": "odd", "eubo": None}]),
        changed(eubo=None, pareto_k=None, log_z_reference_pareto_k=None),
        changed(
            log_z_reference=None,
            log_z_reference_ci=None,
            log_z_reference_source=None,
            log_z_reference_pareto_k=None,
            path_kl=None,
            verdict="coverage_unchecked",
        ),
        SUMMARY | {"certificate": UNCERTIFIED},
        SUMMARY | {"certificate": UNCERTIFIED | {"log_z_is": None, "log_z_is_ci": None}},
        SUMMARY | {"metrics": {}},
        SUMMARY | {"metrics": {"rtb": {"bleu": None, "log_reward": 0}, "reference": {"trusted": 1}}},
        {**SUMMARY, "seconds": dict.fromkeys(SUMMARY["seconds"]), "skipped": None, "provenance": {}},
    ],
    ids=[
        "plain",
        "conditional",
        "no bound",
        "no reference",
        "particles",
        "best of",
        "no metrics",
        "null metrics",
        "untimed",
    ],
)
def test_every_number_of_the_summary_is_shown_and_every_null_explained(written, summary):
    assert report_problems(written(summary), summary) == []


def test_numbers_are_the_measured_ones(written):
    numbers = Page(written()).numbers
    assert numbers["certificate.log_z_is_ci.0"] == (-1.3, "-1.3")
    assert numbers["certificate.log_z_is"] == (-1.23456, "-1.235")
    assert numbers["certificate.num_paths"] == (12_000, "12,000")
    assert numbers["metrics.rtb.classes.1"] == (0.875, "0.875")
    assert numbers["metrics.per_condition.1.rtb.log_reward"] == (-2.0, "-2")


def test_what_was_asked_and_how_to_get_it_again(written):
    text = Page(written(about="First ``part``,\ncontinued.\n\nSecond.")).text
    assert "with β = 2" in text and "First part, continued." in text and "a chain of 50 steps; data: digits" in text
    assert 'label = "even"' in text and "retries = 2" not in text  # Patience is no part of what r is.
    assert SUMMARY["provenance"]["command"] in text and "1 x cpu" in text
    again = SUMMARY | {"provenance": SUMMARY["provenance"] | {"evaluated_by": "python x --mode=evaluate"}}
    assert "python x --mode=evaluate" in Page(written(again)).text
    assert "The command is not known" in Page(written(SUMMARY | {"provenance": {}})).text


def test_samples_without_weights_have_no_certificate_and_the_page_says_why(written):
    assert "No certificate: particles have no weights." in Page(written(SUMMARY | {"certificate": UNCERTIFIED})).text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_is_said_with_what_to_do_about_it(written, verdict):
    text = Page(written(changed(verdict=verdict))).text
    assert all(words in text for words in (verdict, CERTIFICATE["reason"], *VERDICTS[verdict]))


@pytest.mark.parametrize(
    "reference, words",
    [
        ([-1.25, -1.05], "the two intervals overlap"),
        ([-1.15, -1.05], "the posterior's paths find less"),
        ([-1.5, -1.4], "the posterior's paths find more"),
    ],
)
def test_whether_two_intervals_agree_is_said(written, reference, words):
    assert words in Page(written(changed(log_z_reference_ci=reference))).text


def test_verdicts_of_conditions_are_counted_for_their_mean_hides_them(written):
    verdicts = ["consistent", "modes_missing", "consistent"]
    each = [CERTIFICATE | {"condition": f"c{i}", "verdict": verdict} for i, verdict in enumerate(verdicts)]
    assert "Their verdicts: 2 consistent, 1 modes_missing." in Page(written(changed(per_condition=each))).text


@pytest.mark.parametrize(
    "lines, words",
    [
        (LINES, "Not logged: residual, elbo, ess, log_reward, grad_norm, parity; no step had a finite one."),
        (
            [dict.fromkeys((*report.CURVES, "step"), 1) | dict.fromkeys(report.OWN_PATHS)],
            "Not logged: elbo, ess, log_reward; exploration lasted to the last step.",
        ),
        ([], "No training step was logged."),
    ],
)
def test_curves_that_cannot_be_drawn_are_named(written, lines, words):
    page = Page(written(lines=lines))
    assert words in page.text
    assert page.tags.count("figure") == {0: 0, 1: 5, 3: 2}[len(lines)] + 1  # And the bars of the classes.


def hostile(tree):
    """The same tree with such text for every text, but the verdict, which the certificate chooses."""
    if isinstance(tree, dict):
        return {name: value if name == "verdict" else hostile(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [hostile(value) for value in tree]
    return HOSTILE if isinstance(tree, str) else tree


def test_hostile_text_is_text(written):
    """The same elements in the same order as with harmless text, nothing loaded, and all of it to be read."""
    summary = changed(per_condition=[CERTIFICATE | {"condition": "even"}])
    harmless = Page(written(summary))
    attacked = Page(written(hostile(summary), hostile(CONFIG), HOSTILE))
    assert attacked.tags == harmless.tags
    assert not attacked.wrong and not attacked.loads
    assert attacked.numbers == harmless.numbers
    assert "</code><script>alert(1)</script><img src='http://x/'> & \" ' \ufffd\ufffd ]]> --> {{7*7}}" in attacked.text


def test_hostile_names_are_text(written):
    named = SUMMARY["metrics"] | {HOSTILE: {HOSTILE: 1.0, "k": {HOSTILE: 0.5, "$\\bad$": 0.5}}, f"{HOSTILE} again": 2.0}
    plain = SUMMARY["metrics"] | {"a": {"b": 1.0, "k": {"c": 0.5, "d": 0.5}}, "d": 2.0}
    attacked, harmless = (Page(written(SUMMARY | {"metrics": metrics})) for metrics in (named, plain))
    assert attacked.tags == harmless.tags and not attacked.wrong and not attacked.loads


def test_markup_is_not_escaped_twice_and_attributes_are_escaped():
    made = pages.tag("p", pages.tag("b", "1 < 2"), " & ", 3, title='"<')
    assert made == '<p title="&quot;&lt;"><b>1 &lt; 2</b> &amp; 3</p>'


def test_a_long_curve_is_thinned_and_ends_where_it_ends():
    lines = [{"step": step, "loss": -float(step)} for step in range(1, 4321)]
    steps, values = charts._points("loss", lines)
    assert charts.POINTS / 2 < len(steps) <= charts.POINTS
    assert steps[-1] == 4320 and (values == -steps).all() and (steps[1:] > steps[:-1]).all()


def test_lines_that_are_no_numbers_are_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null, "a": true, "b": "x", "c": 1e999, "d": 2}\nnot JSON\n{"step": 2, "lo')
    assert records.read_metrics(path) == [{"step": 1, "d": 2}]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
# Runs when the page has been laid out; the page itself has no script. In a frame, for a window has a least width.
PROBE = """<script>addEventListener("load", () => { parent.document.title = [document.documentElement.scrollWidth,
  innerWidth, [...document.images].filter(i => !i.complete || !i.naturalWidth).length].join(" ") })</script></body>"""
FRAME = '<!DOCTYPE html><title></title><link rel="icon" href="data:,"><iframe width="{}" height="2000" srcdoc="{}">'


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_a_complaint_and_no_wider_than_the_screen(written, tmp_path, width):
    each = [CERTIFICATE | {"condition": f"a condition of many words, {i}"} for i in range(3)]
    inside = written(changed(per_condition=each)).replace("</body>", PROBE)
    page = tmp_path / "page.html"
    page.write_text(FRAME.format(width, html.escape(inside)) + "</iframe>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1600,2000"]
    options += ["--dump-dom", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    shown = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in shown.stderr
    assert re.search("<title>(.*)</title>", shown.stdout)[1] == f"{width} {width} 0"
