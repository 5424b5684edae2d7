"""The machine as XLA shows it to tests and to the processes that they start."""

import os

# Two thirds of their time was XLA's optimisation of code that runs once.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def environment(num_devices: int = 1) -> dict[str, str]:
    """Of a process with so many devices, which compiles as the tests do and where they do."""
    return os.environ | {
        "XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count={num_devices}",
        "JAX_COMPILATION_CACHE_DIR": os.environ["RTBJAX_TEST_CACHE"],
    }
