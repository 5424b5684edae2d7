"""Rules by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.optimizers import RULES


def test_muon_sees_a_convolution_as_the_matrix_of_its_fan_in_and_out(key):
    """A kernel and the same numbers as a matrix move alike, by an orthogonal step; a bias moves by Nesterov's Adam."""
    params = {"conv": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}
    gradient = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
    flat = lambda tree: tree | {"conv": tree["conv"].reshape(36, 8)}  # noqa: E731
    rule = RULES["muon"](1.0)
    with jax.numpy_dtype_promotion("standard"):
        step, _ = rule.update(gradient, rule.init(params), params)
        matrix, _ = rule.update(flat(gradient), rule.init(flat(params)), flat(params))
        adam, _ = optax.nadam(1.0).update(gradient["bias"], optax.nadam(1.0).init(params["bias"]))
    np.testing.assert_allclose(flat(step)["conv"], matrix["conv"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step["bias"], adam, rtol=1e-4)
    singular = np.linalg.svd(np.asarray(matrix["conv"], np.float64), compute_uv=False)
    assert singular.max() / singular.min() < 2.5  # Five Newton-Schulz steps bring them near 1.
    assert np.sum(step["conv"] * gradient["conv"]) < 0.0
