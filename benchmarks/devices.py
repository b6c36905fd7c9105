"""Whether the hand-written kernels can run on the device at hand."""

import jax

_HOPPER = 9.0


def problem() -> str | None:
    """Why they cannot, None where they can.

    They are for NVIDIA GPUs from Hopper on.
    """
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or capability is None:
        return f"needs an NVIDIA GPU, from Hopper on; JAX's device is {device}"
    if float(capability) < _HOPPER:
        return (
            f"needs an NVIDIA GPU from Hopper on, of compute capability {_HOPPER}; "
            f"{device.device_kind} has {capability}"
        )
    return None
