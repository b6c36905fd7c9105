"""Set-up of every test process."""

import os

# The kernel interpreter runs each warpgroup of a CTA in a thread of XLA's pool, which
# has one per device: with fewer than there are warpgroups they wait for one another
# for ever. Read when JAX makes its devices.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()

# Arrays are tiny, and programs many: compiling takes longer than running. Processes
# that tests start have this too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
