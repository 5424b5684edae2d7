"""The machine as XLA shows it to tests and to the processes that they start."""

import os

# Two thirds of their time was XLA's optimisation of code that runs once.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def environment(num_devices: int | None = None) -> dict[str, str]:
    """Of a process that compiles as the tests do and where they do; without a number it has a user's devices."""
    forced = f" --xla_force_host_platform_device_count={num_devices}" if num_devices else ""
    return os.environ | {
        "XLA_FLAGS": COMPILE_FAST + forced,
        "JAX_COMPILATION_CACHE_DIR": os.environ["RTBJAX_TEST_CACHE"],
    }
