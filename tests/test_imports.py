"""What a plain import brings in."""

import subprocess
import sys


def test_no_gpu_machinery_until_it_is_used():
    program = (
        "import sys, butterjax as bj, jax\n"
        "x = jax.numpy.ones((2, 16)); factors = bj.init(jax.random.key(0), "
        "bj.Chain.monarch(16, 16))\n"
        "bj.butterfly(x, factors)\n"
        "assert 'jax._src.pallas.mosaic_gpu.lowering' not in sys.modules\n"
        "bj.gpu.plan_launches(bj.Chain.monarch(16, 16), dtype='bfloat16', batch=8)\n"
        "assert 'jax._src.pallas.mosaic_gpu.lowering' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
