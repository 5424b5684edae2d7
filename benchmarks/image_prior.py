"""How good the shipped prior and classifier of a set of images are.

    python benchmarks/image_prior.py mnist --train=mnist_train.npz --test=mnist_test.npz
    python benchmarks/image_prior.py cifar10 --train=cifar10_train.npz --test=cifar10_test.npz

The files hold arrays ``images`` (uint8 [N, H, W] or [N, H, W, C]) and ``labels``. Prints and writes as JSON (--out) the
classifier's accuracy on the test images, the share of each class among the prior's samples, Fréchet distances in the
classifier's features (samples to test images, and between two halves of these), and how far samples and test images are
from their nearest training image, which tells a prior that memorised its data. Two minutes on two cores, of digits.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.domains import images
from experiments.images import networks
from experiments.images.evaluation import in_batches
from experiments.records import write_json
from experiments.streams import stream
from rtbjax.metrics.distances import frechet
from rtbjax.train import make_rollout


def prior_samples(config, count, batch=500):
    domain = images.build(config)
    run, key = make_rollout(domain.process, (batch, *domain.event_shape)), stream(config.seed, "prior quality")
    parts = [run(jax.random.fold_in(key, first), domain.prior).xs[-1] for first in range(0, count, batch)]
    return np.concatenate(parts)[:count]


def nearest_distances(x, train):
    """Euclidean distance of every image to the nearest of ``train``."""
    squares = np.sum(train**2, axis=1)
    closest = [np.min(np.sum(row**2) - 2.0 * train @ row + squares) for row in x]
    return np.sqrt(np.maximum(closest, 0.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(data.SETS))
    parser.add_argument("--train", required=True, help="npz file of training images")
    parser.add_argument("--test", required=True, help="npz file of test images")
    parser.add_argument("--samples", type=int, default=2000, help="of the prior, and of the test images compared")
    parser.add_argument("--out", help="default runs/SET_prior.json")
    arguments = parser.parse_args()
    train, test = (data.load(arguments.set, path) for path in (arguments.train, arguments.test))
    config, count = importlib.import_module(f"configs.{arguments.set}").get_config(), arguments.samples
    net, params = networks.load_classifier(config)
    logits = jax.jit(lambda x: net.apply({"params": params}, x))
    features = jax.jit(lambda x: net.apply({"params": params}, x, method="features"))

    # The prior's last step leaves noise; test images are compared with the same noise on.
    noise = np.random.default_rng(0).normal(size=test.images.shape).astype(np.float32)
    noisy = test.images + config.process.min_std * noise
    x = prior_samples(config, count)
    classes = in_batches(logits, jnp.asarray(x)).argmax(axis=1)
    flat = train.images.reshape(len(train.images), -1)
    f_test = in_batches(features, noisy[: 2 * count])
    near = {
        "samples": nearest_distances(x.reshape(count, -1), flat),
        "test": nearest_distances(noisy[:count].reshape(count, -1), flat),
    }
    result = {
        "trained_on": len(train.images),
        "process": config.process.to_dict(),
        "classifier_accuracy": float(np.mean(in_batches(logits, test.images).argmax(axis=1) == test.labels)),
        "classifier_accuracy_noisy": float(np.mean(in_batches(logits, noisy).argmax(axis=1) == test.labels)),
        "class_shares": np.bincount(classes, minlength=10) / count,
        "surer_than_90_percent": float(np.mean(in_batches(lambda x: jax.nn.softmax(logits(x)).max(axis=1), x) > 0.9)),
        "frechet_samples_to_test": frechet(in_batches(features, x), f_test[:count]),
        "frechet_test_to_test": frechet(f_test[count:], f_test[:count]),
        "nearest_training_image": {
            name: {"median": np.median(d), "quantile_01": np.quantile(d, 0.01)} for name, d in near.items()
        },
        "samples_nearer_than_99_percent_of_test": float(np.mean(near["samples"] < np.quantile(near["test"], 0.01))),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    write_json(Path(arguments.out or f"runs/{arguments.set}_prior.json"), result)


if __name__ == "__main__":
    main()
