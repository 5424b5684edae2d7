import os

from machine import COMPILE_FAST

# Before JAX starts. Sharding is tested on 8 forced CPU devices, whose threads meet late where the cores are busy, which
# XLA takes for a deadlock after 40 seconds.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_FAST} --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile

import hypothesis
import jax
import pytest

# The tests of a run, and its processes, share what they compile.
CACHE = os.environ.setdefault("RTBJAX_TEST_CACHE", tempfile.mkdtemp(prefix="rtbjax-xla-"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# The same examples everywhere, and nothing left in the working tree.
hypothesis.settings.register_profile("rtbjax", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("rtbjax")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def packages():
    """torch and transformers, where a hosted model can be tested."""
    torch = pytest.importorskip("torch", reason="a hosted model needs the extra 'lm'")
    return torch, pytest.importorskip("transformers", reason="a hosted model needs the extra 'lm'")
