"""What each lane of `strided` does, for any machine that has its instructions.

`machine` is `pallas_kernels.common.registers`, or in tests NumPy arrays of 32 lanes.
Of a tile of vectors a warp multiplies 8 by its neighbouring blocks: weights are the
left operands of mma.sync m16n8k16, vectors the right ones. `thread` is a thread's
number in the CTA. With lane = 4g + t

    x        vector g; of a step's 16 inputs four, in pairs (2p, 2p + 1)
    weights  outputs g and g + 8 of a tile; the same inputs
    sums     vectors 2t and 2t + 1; outputs g and g + 8

where 'output g' stands for the one that `Plan.output_turn` tells. What is loaded or
stored at a time are the neighbours' entries: 16 bytes, of 8 blocks, or 8 of 4. Which
inputs and outputs are a lane's is for the kernel to choose, and chosen so that nobody
waits for a bank: rows are an odd number of lines apart.
"""

import itertools
from typing import Any

from pallas_kernels.common.slabs import SWIZZLES
from pallas_kernels.strided.plan import GROUP, TILE, Plan

Operands = list[list[list[Any]]]  # [neighbour][step] of registers.


def position(machine: Any, plan: Plan, thread: Any) -> tuple[Any, Any, Any]:
    """Strip of neighbours, share of outputs and group of rows of a thread's warp.

    Warps beyond those that are needed do what the last one does.
    """
    index = machine.minimum(machine.shift_right(thread, 5), plan.busy_warps - 1)
    rest = machine.divide(index, plan.strips)
    return (
        machine.remainder(index, plan.strips),
        machine.remainder(rest, plan.shares),
        machine.divide(rest, plan.shares),
    )


def load_weights(machine: Any, plan: Plan, thread: Any, ring: Any) -> list[Operands]:
    """A warp's weights as left operands, for each of its tiles of outputs.

    Args:
      ring: where the chunks of weights lie, one after another.
    """
    strip, share, _ = position(machine, plan, thread)
    turned = _turned(machine, plan, thread)
    rows, pitch, line = plan.slot_in
    found = []
    for tile in range(plan.tiles_of_warp):
        halves = []
        for half in range(2):
            first = machine.add(
                machine.multiply(share, 2 * plan.tiles_of_warp), 2 * tile + half
            )
            chunk = machine.divide(first, plan.row_groups)
            row = machine.multiply(machine.remainder(first, plan.row_groups), GROUP)
            start = machine.add(ring, machine.multiply(chunk, 2 * rows * pitch * line))
            row = machine.add(row, turned)
            steps = range(plan.steps)
            halves.append(_load(machine, plan, thread, start, row, strip, steps))
        low, high = halves
        found.append(
            [
                [
                    [
                        low[k][step][0],
                        high[k][step][0],
                        low[k][step][1],
                        high[k][step][1],
                    ]
                    for step in range(plan.steps)
                ]
                for k in range(plan.width)
            ]
        )
    return found


def load_vectors(
    machine: Any, plan: Plan, thread: Any, start: Any, part: int
) -> Operands:
    """A part of the inputs of a warp's 8 vectors of a tile, as right operands.

    Args:
      start: where the tile lies.
      part: which one.
    """
    strip, _, rows = position(machine, plan, thread)
    g, _ = _lane(machine, thread)
    row = machine.add(machine.multiply(rows, GROUP), g)
    each = plan.steps // plan.parts
    steps = range(part * each, (part + 1) * each)
    return _load(machine, plan, thread, start, row, strip, steps)


def multiply(
    machine: Any,
    plan: Plan,
    weights: Operands,
    x: Operands,
    sums: list[Any] | None,
    part: int,
    dtype: Any,
) -> list[Any]:
    """Adds up the products of a part of the inputs, for a tile of outputs.

    Returns:
      For each neighbour 4 registers of float32.
    """
    each = plan.steps // plan.parts
    found: list[Any] = [
        None if sums is None else sums[4 * k : 4 * k + 4] for k in range(plan.width)
    ]
    for step, k in itertools.product(range(each), range(plan.width)):
        w = weights[k][part * each + step]
        found[k] = machine.mma(found[k], w, x[k][step], dtype)
    return [register for of_block in found for register in of_block]


def store(
    machine: Any,
    plan: Plan,
    thread: Any,
    sums: list[Any],
    start: Any,
    tile: int,
    dtype: Any,
) -> None:
    """Rounds the sums of a tile of outputs and puts neighbours side by side.

    Args:
      sums: as `multiply` returns them.
      start: where the tile of y lies.
      tile: which one of the warp's tiles of outputs.
      dtype: of y.
    """
    strip, share, rows = position(machine, plan, thread)
    _, t = _lane(machine, thread)
    first = machine.add(
        machine.multiply(share, TILE * plan.tiles_of_warp),
        _turned(machine, plan, thread),
    )
    row = machine.add(machine.multiply(rows, GROUP), machine.multiply(t, 2))
    pitch = plan.slot_out[1]
    for half, odd in itertools.product(range(2), range(2)):
        words = [
            machine.round_pair(
                sums[4 * k + 2 * half + odd], sums[4 * (k + 1) + 2 * half + odd], dtype
            )
            for k in range(0, plan.width, 2)
        ]
        feature = TILE * tile + 8 * half
        here = machine.add(row, odd)
        at, offset = _place(machine, plan, start, pitch, here, first, feature, strip)
        machine.store_shared(at, offset, words)


def load_bias(
    machine: Any,
    plan: Plan,
    thread: Any,
    bias: Any,
    block: Any,
    output: Any,
    k: Any,
    tile: int,
) -> list[Any]:
    """The bias of a tile's sums, in the order of `multiply`.

    Args:
      bias: (a, b, d) in HBM.
      block: i of the blocks.
      output, k: the CTA's first output and first neighbour.
      tile: which one of the warp's tiles of outputs.
    """
    _, b, _, d = plan.shape
    strip, share, _ = position(machine, plan, thread)
    first = machine.add(
        machine.multiply(share, TILE * plan.tiles_of_warp),
        _turned(machine, plan, thread),
    )
    k = machine.add(k, machine.multiply(strip, plan.width))
    halves = []
    for half in range(2):
        j = machine.add(machine.add(output, first), TILE * tile + 8 * half)
        j = machine.minimum(j, b - 1)  # Outputs that there are not are not stored.
        row = machine.add(machine.multiply(block, b), j)
        element = machine.add(machine.multiply(row, d), k)
        halves.append(machine.load_wide(bias, element, plan.width))
    return [halves[n // 2][k] for k in range(plan.width) for n in range(4)]


def _lane(machine: Any, thread: Any) -> tuple[Any, Any]:
    """g and t of the lane 4g + t."""
    g = machine.bit_and(machine.shift_right(thread, 2), 7)
    return g, machine.bit_and(thread, 3)


def _turned(machine: Any, plan: Plan, thread: Any) -> Any:
    """The output, of 8, that the lane's part g stands for."""
    g, _ = _lane(machine, thread)
    turn = plan.output_turn
    if not turn:
        return g
    left = machine.bit_and(machine.shift_left(g, turn), 7)
    return machine.add(left, machine.shift_right(g, 3 - turn))


def _load(
    machine: Any,
    plan: Plan,
    thread: Any,
    start: Any,
    row: Any,
    strip: Any,
    steps: range,
) -> Operands:
    """Entries of a row for each neighbour, in pairs along the inputs of some steps."""
    _, t = _lane(machine, thread)
    mine = machine.multiply(t, plan.input_of_lane)
    pitch = plan.slot_in[1]
    found: Operands = [[] for _ in range(plan.width)]
    for step in steps:
        vectors = []
        for q in range(4):
            feature = plan.input(step, q)
            at, offset = _place(machine, plan, start, pitch, row, mine, feature, strip)
            vectors.append(machine.load_shared(at, offset, plan.width // 2))
        for k in range(plan.width):
            word, half = divmod(k, 2)
            found[k].append(
                [
                    machine.pair(vectors[2 * p][word], vectors[2 * p + 1][word], half)
                    for p in range(2)
                ]
            )
    return found


def _place(
    machine: Any,
    plan: Plan,
    start: Any,
    pitch: int,
    row: Any,
    mine: Any,
    feature: int,
    strip: Any,
) -> tuple[Any, int]:
    """Where in a tile a strip's neighbours are, as a register and a constant.

    Args:
      start: where the tile lies.
      pitch: lines from one row to the next.
      row: of the tile.
      mine: the lane's part of the input or output; it and `feature` have no bits in
        common.
      feature: the rest of it, the same for all lanes.
      strip: which neighbours.
    """
    per_line, size, each = plan.per_line, 2 * plan.line, 2 * plan.config.neighbours
    lines, within = divmod(feature, per_line)
    line = machine.add(machine.multiply(row, pitch), lines % 8)
    byte = machine.multiply(strip, 2 * plan.width)
    if per_line == 1:
        line = machine.add(line, mine)
    else:
        line = machine.add(line, machine.divide(mine, per_line))
        inside = machine.remainder(mine, per_line)
        byte = machine.add(byte, machine.multiply(inside, each))
    if size in SWIZZLES:  # As TMA does: by bits 7 and up of the address.
        turn = machine.remainder(machine.divide(line, 128 // size), size // 16)
        byte = machine.bit_xor(byte, machine.multiply(turn, 16))
    at = machine.add(start, machine.add(machine.multiply(line, size), byte))
    # Bits that nothing was added to, so that addresses with and without share a
    # register outside of the loop.
    at = machine.bit_xor(at, within * each) if within else at
    return at, (lines - lines % 8) * size
