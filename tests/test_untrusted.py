"""Files from elsewhere: none is unpickled, and a malformed one is one clear error."""

import ast
import io
import json
import math
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from shrunk import gmm

from configs import gmm as gmm_config
from configs import mnist as mnist_config
from experiments import data, evaluate, exact, records, weights
from experiments.checkpoint import CheckpointError, Checkpoints
from experiments.domains import gmm as domain
from experiments.errors import ConfigError
from experiments.settings import check

ROOT = Path(__file__).resolve().parents[1]
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

LIKE = {"a": np.zeros((3, 2), np.float32), "b": {"c": np.zeros(4, np.float32)}}
WHOLE = safetensors.numpy.save({"a": np.ones((3, 2), np.float32), "b/c": np.ones(4, np.float32)}, {"rtbjax": "{}"})


def archive(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return file.getvalue()


DIGITS = archive(images=np.zeros((3, 28, 28), np.uint8), labels=np.arange(3))


def damaged(whole: bytes):
    """Bytes flipped, cut off, put in."""
    place = st.integers(0, len(whole) - 1)
    flipped = st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=4).map(
        lambda changes: bytes(byte ^ dict(changes).get(i, 0) for i, byte in enumerate(whole))
    )
    inserted = st.tuples(place, st.binary(min_size=1, max_size=9)).map(
        lambda new: whole[: new[0]] + new[1] + whole[new[0] :]
    )
    return flipped | place.map(lambda end: whole[:end]) | inserted | st.binary(max_size=300)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "Z", ""]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**62]), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 1, 16, 24, 40, 2**40, 2**63]), min_size=2, max_size=2),
    }
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b/c", "__metadata__", ""]), TENSOR | JSON, max_size=3).map(
    lambda header: (text := json.dumps(header).encode()) and struct.pack("<Q", len(text)) + text + bytes(40)
)


@SHARED_FOLDER
@given(st.one_of(damaged(WHOLE), HEADERS))
def test_weights_are_numbers_of_the_right_shape_or_one_error(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    try:
        found = weights.load(path, LIKE)
    except weights.WeightsError as error:
        assert str(path) in str(error)
    else:
        assert found["a"].shape == (3, 2) and found["b"]["c"].shape == (4,)
        assert np.isfinite(found["a"]).all() and np.isfinite(found["b"]["c"]).all()
    try:
        assert isinstance(weights.metadata(path), dict)
    except weights.WeightsError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    weights.save(tmp_path / "w.safetensors", LIKE | {"b": {"c": np.array([0, value, 0, 0], np.float32)}})
    with pytest.raises(weights.WeightsError, match="'b/c' holds numbers that are not finite"):
        weights.load(tmp_path / "w.safetensors", LIKE)


@SHARED_FOLDER
@given(damaged(DIGITS))
def test_digits_are_digits_or_one_error(tmp_path, content):
    path = tmp_path / "digits.npz"
    path.write_bytes(content)
    try:
        found = data.mnist(str(path))
    except data.DataError as error:
        assert path.name in str(error)
    else:
        assert (
            found.images.shape == (len(found.labels), 28, 28, 1) and 0 <= found.labels.min() <= found.labels.max() <= 9
        )


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "array", "archive"])
def test_nothing_that_is_read_is_unpickled(tmp_path, kind):
    trap = tmp_path / "unpickled"
    bombs = np.array([Bomb(trap)] * 3, object)
    content = {
        "pickle": pickle.dumps(Bomb(trap)),
        "array": archive(x=bombs)[:0] or _npy(bombs),
        "archive": archive(images=bombs, labels=bombs, log_z=bombs, source=bombs, samples=bombs),
    }[kind]
    config = gmm(tmp_path)
    built = domain.build(config)
    cache = exact.cache_file(config, built)
    cache.parent.mkdir()
    for path in (tmp_path / "digits.npz", tmp_path / "w.safetensors", cache):
        path.write_bytes(content)
    with pytest.raises(data.DataError):
        data.mnist(str(tmp_path / "digits.npz"))
    with pytest.raises(weights.WeightsError):
        weights.load(tmp_path / "w.safetensors", LIKE)
    assert exact.cached(config, built) is None
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(1, LIKE)
    for path in (tmp_path / "c" / "1").rglob("*"):
        if path.is_file():
            path.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoints.restore(LIKE)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists()  # It would have gone off.


def _npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("path", sorted([*ROOT.glob("rtbjax/**/*.py"), *ROOT.glob("experiments/**/*.py")]), ids=str)
def test_no_source_can_unpickle(path):
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
        # PyTorch is asked for rewards; its own files are pickles.
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id.endswith("torch"):
            assert node.attr not in ("load", "hub", "jit")
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("transformers.AutoModel"):
            assert "use_safetensors=True" in map(ast.unparse, node.keywords)


@SHARED_FOLDER
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), damaged(b'{"train": {"steps": 4}, "seed": 0}')))
def test_a_config_in_a_workdir_is_ours_or_one_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assume(content.strip())
    try:
        assert records.confirm(tmp_path, {"train": {"steps": 4}, "seed": 0})
        assert json.loads(content) == {"train": {"steps": 4}, "seed": 0}
    except records.WorkdirError as error:
        assert "choose another --workdir" in str(error)


@pytest.mark.parametrize("depth", [500, 990, 100_000])
def test_json_that_is_too_deep_is_one_error(tmp_path, depth):
    (tmp_path / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(records.WorkdirError, match="choose another --workdir"):
        records.confirm(tmp_path, {"seed": 0})


SUMMARY = {"certificate": {name: 1.0 for name in ("log_z_is", "elbo", "eubo", "ess", "path_kl", "log_z_reference")}}
SUMMARY["certificate"] |= {"log_z_is_ci": [0, 1], "log_z_reference_ci": [0, 1], "log_z_reference_source": "x"}
SUMMARY["certificate"] |= {"num_paths": 3, "verdict": "consistent", "reason": "ESS is high"}


@SHARED_FOLDER
@given(damaged(json.dumps(SUMMARY).encode()) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_summary_can_be_reported_or_is_one_error(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    try:
        assert "verdict: " in evaluate.report(evaluate.finished(tmp_path))
    except records.WorkdirError as error:
        assert "delete it to evaluate again" in str(error)


def test_the_summary_the_others_are_damaged_from_is_whole(tmp_path):
    assert evaluate.finished(tmp_path) is None
    records.write_json(tmp_path / "summary.json", SUMMARY)
    assert "log Z  1.000 [0.000, 1.000]" in evaluate.report(evaluate.finished(tmp_path))


LOG = b"".join(json.dumps({"step": step, "loss": 1.0}).encode() + b"\n" for step in range(1, 5))


@SHARED_FOLDER
@given(st.one_of(damaged(LOG), st.lists(JSON, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())))
def test_a_log_keeps_the_lines_that_are_whole(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert records.last_logged_step(path) >= 0
    records.Metrics(path, 3).close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert all(isinstance(step, int) and 0 <= step <= 3 for step in steps)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, and the files of the second."""
    folder = tmp_path_factory.mktemp("saved") / "c"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    return folder, sorted(path for path in (folder / "2").rglob("*") if path.is_file())


def tree(step):
    noise = np.random.default_rng(step)
    return {"x": noise.normal(size=(40, 3)).astype(np.float32), "n": np.full((), step, np.int32), "none": None}


@settings(SHARED_FOLDER, max_examples=150)
@given(st.data())
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
def test_a_damaged_checkpoint_is_exact_or_gives_way_to_the_one_before(tmp_path, saved, drawn):
    folder, files = saved
    path = drawn.draw(st.sampled_from([path for path in files if path.stat().st_size]))
    content = drawn.draw(damaged(path.read_bytes()))
    copy = tmp_path / "c"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / path.relative_to(folder)).write_bytes(content)
    checkpoints = Checkpoints(copy, keep=2)
    step, found = checkpoints.restore(tree(0))
    checkpoints.close()
    assert step in (1, 2)
    for name in ("x", "n"):
        np.testing.assert_array_equal(found[name], tree(step)[name])


def test_numbers_that_changed_unnoticed_by_their_format_are_noticed(tmp_path, monkeypatch, caplog):
    """Decompressed, a flipped bit may be just another number; the hash is what tells."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, tree(1))
    with monkeypatch.context() as patch:
        patch.setattr("experiments.checkpoint._hash", lambda _: np.ones(16, np.uint8))
        checkpoints.save(2, tree(2))
    step, found = checkpoints.restore(tree(0))
    assert step == 1 and found["n"] == 1
    assert "Checkpoint 2 cannot be read, trying the one before: it is not what was saved" in caplog.text


@pytest.mark.parametrize("name", ["3", "-1", "two", "2.orbax-checkpoint-tmp", "99999999999999999999"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_no_checkpoint_among_them_is_passed_over(tmp_path, name, is_folder):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, tree(1))
    checkpoints.close()
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_text("")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(tree(0))[0] == 1
    checkpoints.save(2, tree(2))
    assert Checkpoints(tmp_path, keep=2).restore(tree(0))[0] == 2


NUMBERS = [
    (make, name)
    for make in (gmm_config.get_config, mnist_config.get_config)
    for name, value in records.flatten(make().to_dict()).items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
]


@settings(max_examples=300)
@given(
    st.sampled_from(NUMBERS),
    st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e-320, 1e308, math.nan, math.inf]),
)
def test_a_number_in_a_config_passes_the_border_or_is_one_error(which, value):
    make, name = which
    config = make()
    assert isinstance(config, ConfigDict)
    try:
        config.update_from_flattened_dict({name: value})
    except (TypeError, OverflowError):
        assume(False)  # Of another type: refused when it is parsed.
    try:
        check(config)
    except ConfigError as error:
        assert "config." in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "def get_config(:",
        "1 / 0",
        "import nowhere",
        "def get_config(variant=''): return 1 / 0",
        "def get_config(variant=''): return None",
        "def get_config(variant=''): return {}",
        "def get_config(variant=''): return get_config(variant)",
        pytest.param(
            "def get_config(variant=''): return get_config()",
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="CPython 3.13 itself does not stop it"),
        ),
        "get_config = 3",
        "\0",
        "",
    ],
)
def test_a_config_file_that_is_none_is_one_sentence(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    command = [sys.executable, "experiments/run.py", f"--config={path}", f"--workdir={tmp_path}/w"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = [
        line for line in done.stderr.splitlines() if "config_flags.py" not in line and "before flag parsing" not in line
    ]
    assert done.returncode == 1 and len(said) == 1 and said[0].startswith("rtbjax: "), done.stderr
    assert not (tmp_path / "w").exists()
