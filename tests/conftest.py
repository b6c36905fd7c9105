"""Set-up of every test process."""

import os

# The kernel interpreter runs each warpgroup of a CTA in a thread of XLA's pool: with
# fewer of them than warpgroups, of all kernels that run at a time, these wait for one
# another for ever. XLA reads this where it would count processors.
os.environ["NPROC"] = "32"

# Devices for the tests of meshes. Read when JAX makes them.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()

# Arrays are tiny, and programs many: compiling takes longer than running. Processes
# that tests start have this too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
