"""Python functions that a config names."""

import sys

import pytest

from experiments import functions
from experiments.errors import ConfigError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "rewards_of_a_user.py"
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    path.write_text("LIMIT = 3\n\n\ndef short(texts):\n    return [-max(0, len(text) - LIMIT) for text in texts]\n")
    return path


def test_a_function_is_found_by_its_name(file):
    assert functions.load("reward.function", f"{file.stem}:short")(["abc", "abcde"]) == [0, -2]


def test_the_fingerprint_changes_with_what_the_function_may_compute(file):
    name = f"{file.stem}:short"
    before = functions.fingerprint(name)
    assert functions.fingerprint(name) == before != functions.fingerprint(f"{file.stem}:long")
    file.write_text(file.read_text().replace("LIMIT = 3", "LIMIT = 4"))
    assert functions.fingerprint(name) != before
    assert functions.fingerprint("math:sin") != functions.fingerprint("math:cos")  # Built in: of no file.
    assert functions.fingerprint("") == ""


@pytest.mark.parametrize(
    "function, message",
    [
        ("", r"config.reward.function must be 'module:function' .*, got '' \(ValueError"),
        ("short", r"folder in PYTHONPATH, got 'short' \(ModuleNotFoundError: No module named 'short'\)"),
        ("json:missing", r"got 'json:missing' \(AttributeError: .* has no attribute 'missing'\)"),
        ("broken_module_of_a_user:f", r"\(SyntaxError: "),
        ("math:pi", r"config.reward.function='math:pi' is a float, not a function"),
    ],
)
def test_what_is_no_function_is_one_sentence(function, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module_of_a_user.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=message) as raised:
        functions.load("reward.function", function)
    assert "\n" not in str(raised.value)
