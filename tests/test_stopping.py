"""SIGTERM and Ctrl-C save what is done and end with an exit code of its own."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrunk import assert_same_run, gmm, latest_step, log_of

from configs.gmm import get_config
from experiments import checkpoint, hosts, pretrain, records, run, stopping
from experiments.checkpoint import Checkpoints
from experiments.proposal import Proposal
from experiments.stopping import Terminated

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def listening():
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run.execute(gmm(folder), folder / "w")
    return folder / "w"


def terminate(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_it_stops_what_is_not_deferred_at_once(listening, number, name):
    with pytest.raises(Terminated, match=f"stopped by {name}; the same command goes on from the last checkpoint"):
        terminate(number)
    assert not issubclass(Terminated, Exception)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_deferred_it_waits_and_comes_at_the_end_if_nobody_acted(listening, number):
    with stopping.deferred() as asked:
        assert not asked()
    reached = False
    with pytest.raises(Terminated), stopping.deferred() as asked:
        terminate(number)
        reached = asked()
    assert reached
    with pytest.raises(Terminated):  # As before it was deferred.
        terminate(number)


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does(listening):
    reached = []
    with pytest.raises(Terminated), stopping.deferred():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            terminate(number)
            reached.append(number)
    assert reached == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]


def test_what_a_shell_made_deaf_to_ctrl_c_stays_so(listening):
    """As with nohup, or in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.listen()
    with stopping.deferred() as asked:
        terminate(signal.SIGINT)
        assert not asked()


def test_one_that_was_acted_on_does_not_come_again(listening):
    with pytest.raises(Terminated, match="acted"), stopping.deferred():
        terminate()
        raise Terminated("acted")


def test_outside_the_main_thread_nothing_is_deferred_and_nothing_breaks():
    found = []

    def work():
        with stopping.deferred() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize("moment", ["proposing", "logging", "saving"])
def test_training_saves_the_step_it_is_in_and_goes_on_as_if_uninterrupted(
    tmp_path, monkeypatch, listening, moment, whole
):
    config = gmm(tmp_path)
    owner, name = {
        "proposing": (Proposal, "propose"),
        "logging": (records.Metrics, "write"),
        "saving": (Checkpoints, "save"),
    }[moment]
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == (1 if moment == "saving" else 3):
            terminate()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)
    cut = tmp_path / "cut"
    with pytest.raises(Terminated, match="at step 3"):
        run.execute(config, cut)
    assert latest_step(cut) == 3
    assert [line["step"] for line in log_of(cut)] == [1, 2, 3]
    monkeypatch.setattr(owner, name, original)
    run.execute(config, cut)
    assert_same_run(cut, whole)


def test_a_save_that_no_loop_defers_for_is_finished_first(tmp_path, monkeypatch, listening):
    """As that of step 0, after a warm start."""
    hashed = checkpoint.fingerprint

    def interrupted(*arguments):
        terminate()
        return hashed(*arguments)

    monkeypatch.setattr(checkpoint, "fingerprint", interrupted)
    with pytest.raises(Terminated):
        Checkpoints(tmp_path / "checkpoints", 2).save(0, {"x": np.arange(3.0)})
    monkeypatch.setattr(checkpoint, "fingerprint", hashed)
    step, tree = Checkpoints(tmp_path / "checkpoints", 2).restore({"x": np.zeros(3)})
    assert step == 0
    np.testing.assert_array_equal(tree["x"], np.arange(3.0))


@pytest.mark.parametrize("phase", ["gathering exact paths", "exact posterior by rejection", "posterior samples"])
def test_between_checkpoints_of_the_rest_it_stops_at_once_and_nothing_is_lost(
    tmp_path, monkeypatch, listening, phase, whole
):
    config = gmm(tmp_path)
    bar = hosts.progress

    def interrupted(*arguments, **options):
        if options.get("desc") == phase:
            terminate()
        return bar(*arguments, **options)

    monkeypatch.setattr(hosts, "progress", interrupted)
    with pytest.raises(Terminated):
        run.execute(config, tmp_path / "cut")
    monkeypatch.setattr(hosts, "progress", bar)
    run.execute(config, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", whole)


def test_a_regression_saves_too(tmp_path, listening):
    """The warm start and all pretraining are this one function."""
    settings = get_config().pretrain
    settings.steps, settings.checkpoint_every = 10, 1000

    def fit(workdir, on_call=lambda _: None):
        def loss(params, key, data):
            return jnp.sum((params - data + jax.random.normal(key, (3,))) ** 2)

        arguments = dict(key=jax.random.key(0), workdir=workdir, label="line", steps_per_call=2, on_call=on_call)
        return pretrain.fit(loss, jnp.zeros(3), jnp.arange(3.0), settings, **arguments)

    calls = []

    def interrupted(_):
        calls.append(None)
        if len(calls) == 3:
            terminate()

    with pytest.raises(Terminated, match="at step 6 of the line"):
        fit(tmp_path / "cut", interrupted)
    assert latest_step(tmp_path / "cut") == 6
    np.testing.assert_array_equal(fit(tmp_path / "cut"), fit(tmp_path / "whole"))


def ended(code: str) -> subprocess.CompletedProcess:
    """A program in a process of its own: signal handlers and exit codes belong to one."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_the_exit_code_is_the_documented_one_and_no_computation_is_torn_down():
    """In the middle of a rollout; what the interpreter does as it is taken down would give another code."""
    done = ended(
        "import atexit, os, signal\n"
        "import jax\n"
        "from experiments import run\n"
        "def rollout(argv):\n"
        "    jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda i, x: x @ x, x))(jax.numpy.eye(300))\n"
        "    print('computing')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "run.run = rollout\n"
        "atexit.register(os._exit, 1)\n"
        "run.main([])\n"
    )
    assert done.returncode == stopping.EXIT_CODE == 75
    assert done.stdout == "computing\n"
    assert done.stderr == "rtbjax: stopped by SIGTERM; the same command goes on from the last checkpoint.\n"
    assert "| 75 |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name, said", [("SIGTERM", "SIGTERM"), ("SIGINT", "Ctrl-C")])
def test_while_a_command_is_still_importing_it_leaves_with_the_same_code(name, said):
    done = ended(
        "import os, runpy, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'jax':\n"
        f"            os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Slow())\n"
        "runpy.run_path('experiments/run.py', run_name='__main__')\n"
    )
    assert done.returncode == 75
    assert done.stderr == f"rtbjax: stopped by {said} before anything was done.\n"
