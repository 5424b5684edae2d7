"""CIFAR-10 in the images' domain: what is read, what is refused, and the whole path from pictures to a posterior."""

import jax
import numpy as np
import pytest
from check_workdir import problems
from shrunk import changed

from configs.cifar10 import get_config
from experiments import data, loop, run, weights
from experiments.domains import images
from experiments.errors import ConfigError
from experiments.images import networks, rewards
from rtbjax import rollout


def pictures(path, shape=(40, 32, 32, 3), labels=None):
    """Random ones."""
    rng = np.random.default_rng(0)
    labels = np.arange(shape[0]) % 10 if labels is None else labels
    np.savez(path, images=rng.integers(0, 256, shape, np.uint8), labels=labels)
    return str(path)


def test_without_weights_it_names_the_commands_that_make_them(tmp_path):
    config = changed(get_config(), prior__weights=str(tmp_path / "none.safetensors"))
    command = "one is made, and named, by: python experiments/run.py --config=configs/cifar10.py --mode=pretrain"
    with pytest.raises(
        weights.WeightsError, match=f"no weights file .*none.safetensors, which config.prior.weights .*; {command}$"
    ):
        images.build(config)
    config = changed(get_config(), reward__weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(weights.WeightsError, match=f"{command} --config.pretrain.what=reward$"):
        networks.load_classifier(config)
    config = changed(get_config(), value__weights=str(tmp_path / "none.safetensors"), posterior__kind="value_guided")
    with pytest.raises(weights.WeightsError, match=f"{command} --config.pretrain.what=value$"):
        images.build(config)


def test_pictures_that_are_not_what_they_should_be(tmp_path):
    for shape, labels, message in (
        ((2, 28, 28, 3), [0, 1], "pictures must be 32 x 32 pixels with 3 channels, got"),
        ((2, 32, 32), [0, 1], "3 channels, got"),
        ((2, 32, 32, 3), [0, 10], "0..9, got 0..10"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.load("cifar10", pictures(tmp_path / "other.npz", shape, np.array(labels)))
    with pytest.raises(data.DataError, match="neither an npz file, one of CIFAR-10's binary files nor"):
        data.load("cifar10", str(tmp_path))


def test_pictures_that_are_nowhere_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(data.DataError, match="cifar10 is not prepared on this machine .*config.data.path"):
        data.load("cifar10", "")


def test_the_binary_version_is_read_plane_by_plane(tmp_path):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (6, 3, 32, 32), np.uint8)
    rows = np.concatenate([np.arange(6, dtype=np.uint8)[:, None], planes.reshape(6, -1)], axis=1)
    for number in range(5):
        rows[number : number + 1].tofile(tmp_path / f"data_batch_{number + 1}.bin")
    rows[5:].tofile(tmp_path / "test_batch.bin")
    found = data.load("cifar10", str(tmp_path))
    assert found.labels.tolist() == [0, 1, 2, 3, 4] and found.images.shape == (5, 32, 32, 3)
    assert found.images[2, 7, 9, 1] == pytest.approx(planes[2, 1, 7, 9] / 127.5 - 1.0)
    assert data.load("cifar10", str(tmp_path), "test").labels.tolist() == [5]
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(data.DataError, match="test_batch.bin must consist of rows of 3073 bytes, got 5"):
        data.load("cifar10", str(tmp_path), "test")
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(data.DataError, match="no data file .*data_batch_4.bin"):
        data.load("cifar10", str(tmp_path))


@pytest.mark.parametrize(
    "label, found", [("cat", (3,)), ("3", (3,)), ("vehicle", (0, 1, 8, 9)), ("animal", (2, 3, 4, 5, 6, 7))]
)
def test_labels_are_names_numbers_and_kinds(label, found):
    config = changed(get_config(), reward__label=label)
    assert rewards.labels(config) == (label,) and rewards.classes(label) == found


@pytest.mark.parametrize("label", ["10", "even", "Cat", ""])
def test_an_unknown_label_is_told_what_there_is(label):
    with pytest.raises(ConfigError, match="0..9, 'airplane', .*'truck', 'vehicle', 'animal', or for many .* 'classes'"):
        rewards.labels(changed(get_config(), reward__label=label))


def test_an_unknown_set_of_images():
    with pytest.raises(ConfigError, match="data.set must be one of mnist, cifar10, got 'imagenet'"):
        images.build(changed(get_config(), data__set="imagenet"))


def test_weights_of_digits_are_refused():
    with pytest.raises(weights.WeightsError, match="mnist_prior.safetensors holds other weights"):
        images.build(changed(get_config(), prior__weights="weights/mnist_prior.safetensors"))


@pytest.mark.slow
def test_from_pictures_to_a_posterior(tmp_path):
    """The networks are trained, briefly, on pictures of a file; they serve a run, which needs the file no more."""
    path = tmp_path / "pictures.npz"
    config = changed(
        get_config("smoke"),
        devices=1,
        data__path=pictures(path),
        pretrain__steps=20,
        pretrain__batch_size=8,
        pretrain__paths=16,
        value__refine__steps=4,
        posterior__kind="value_guided",
        train__steps=2,
        train__batch_size=8,
        behaviour__accepted=0.0,
        eval__num_samples=16,
        eval__batch_size=16,
        eval__exact_samples=8,
        eval__exact_cache=str(tmp_path / "exact"),
    )
    for what, made in (("prior", "prior"), ("reward", "classifier"), ("value", "value")):
        (tmp_path / what).mkdir()
        images.pretrain(changed(config, pretrain__what=what), tmp_path / what)
        config[what].weights = str(tmp_path / what / f"cifar10_{made}.safetensors")
    path.unlink()
    config.data.path = ""
    assert images.build(config).value is not None
    done = run.execute(config, tmp_path / "run")
    assert done.summary["data_source"] == "prior trained on 40 pictures from pictures.npz"
    assert done.exact().samples.shape == (1, 16, 32, 32, 3)
    assert problems(tmp_path / "run") == []
    posterior = loop.restore(config, done.domain, tmp_path / "run")  # Indexed by the step: no array of NumPy would do.
    paths = rollout(jax.random.key(0), done.domain.process, done.domain.prior, posterior, shape=(2, 32, 32, 3))
    assert np.isfinite(np.sum(paths.log_ratio))
    found = done.summary["metrics"]["rtb"]
    assert set(found) == {"log_reward", "diversity", "frechet_to_exact", "accuracy", "classes", "c2st"}
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
