"""Trains a small image classifier with dense and with butterfly layers.

The same multilayer perceptron is trained twice on the same batches: with
flax.linen.Dense as hidden layers and with butterjax.linen.Butterfly. A table compares
the test accuracy after the last epoch (mean ± standard deviation over the seeds), the
size, and the time per step (median, quartiles); a plot shows the learning curves.

  python -m examples.image_classifier --hidden=1024 --epochs=20 --seeds=3

The digits of scikit-learn need no download. For Fashion-MNIST install the Debian
package dataset-fashion-mnist, or name a folder that holds its four IDX files:

  python -m examples.image_classifier --dataset=fashion_mnist --epochs=5 \\
      --batch_size=128 --learning_rate=0.001 --butterfly_learning_rate=0.006

Each kind of layer has a learning rate of its own. An output of a butterfly factor sums
over fewer inputs than one of a dense layer, which calls for larger steps: Qiu et al.,
"Compute Better Spent", ICML 2024. The defaults suit the digits.
"""

import dataclasses
import gzip
import json
import math
import pathlib
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import linen as nn
from flax.training.train_state import TrainState
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import butterjax as bj
from benchmarks.files import make_folder, write_whole

CLASSES = 10
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"


@dataclasses.dataclass(frozen=True)
class Config:
    """What the flags say."""

    dataset: str
    data_dir: str
    output_dir: str
    hidden: int
    layers: int
    epochs: int
    batch_size: int
    learning_rate: float
    butterfly_learning_rate: float
    seed: int
    seeds: int


def define_flags() -> None:
    """Defines one flag for each field of `Config`."""
    flags.DEFINE_enum("dataset", "digits", ["digits", "fashion_mnist"], "The images.")
    flags.DEFINE_string("data_dir", DEBIAN_FOLDER, "Fashion-MNIST's IDX files, or .gz.")
    flags.DEFINE_string("output_dir", "results/image_classifier", "Folder to write.")
    for name, default, lowest, text in (
        ("hidden", 1024, 1, "Width of the hidden layers."),
        ("layers", 2, 1, "Number of hidden layers."),
        ("epochs", 20, 1, "Passes over the training images."),
        ("batch_size", 64, 1, "Images per step; a last, partial batch is left out."),
        ("seeds", 3, 1, "Trainings of each network, from different random numbers."),
        ("seed", 0, 0, "Seed of all the random numbers."),
    ):
        flags.DEFINE_integer(name, default, text, lowest, upper_bound=2**31 - 1)
    for name, rate, text in (
        ("learning_rate", 0.004, "First learning rate with dense layers; decays to 0."),
        ("butterfly_learning_rate", 0.012, "The same with butterfly layers."),
    ):
        flags.DEFINE_float(name, rate, text)
        flags.register_validator(name, lambda r: 0 < r < math.inf, "is not in (0, inf)")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images of shape (n, pixels) in [0, 1], and n labels below CLASSES."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int32]


def read_digits() -> Dataset:
    """scikit-learn's 1797 digits of 8 × 8 pixels, always split the same way."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset(images[train], labels[train], images[test], labels[test])


def read_fashion_mnist(folder: str) -> Dataset:
    """Fashion-MNIST's 60000 and 10000 images of 28 × 28 pixels, from its IDX files."""
    arrays: list[NDArray] = []
    for part in ("train", "t10k"):
        images = read_idx(folder, f"{part}-images-idx3-ubyte")
        labels = read_idx(folder, f"{part}-labels-idx1-ubyte")
        fit = images.size and images.shape == (*labels.shape, 28, 28)
        if labels.ndim != 1 or not fit or labels.max() >= CLASSES:
            raise ValueError(f"{folder}: {part} is not 28 × 28 images and their labels")
        arrays.append(images.reshape(len(images), -1) / np.float32(255))
        arrays.append(labels.astype(np.int32))
    return Dataset(*arrays)


def read_idx(folder: str, name: str) -> NDArray[np.uint8]:
    """The array in the IDX file of that name, plain or with .gz at its end."""
    path = pathlib.Path(folder, name)
    path = path if path.is_file() else path.with_name(f"{name}.gz")
    if not path.is_file():
        raise ValueError(
            f"--data_dir={folder}: neither {name} nor {name}.gz is there; install the "
            "Debian package dataset-fashion-mnist, or name another folder"
        )
    try:
        data = path.read_bytes()
        return parse_idx(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file.

    Two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension as a
    big-endian 32-bit integer; then the entries, the last index fastest.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"not an IDX header of unsigned bytes: {data[:8].hex(' ')}")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    entries = data[4 + 4 * len(shape) :]
    if len(entries) != math.prod(shape):
        raise ValueError(f"IDX header says {shape}, but {len(entries)} bytes follow it")
    return np.frombuffer(entries, np.uint8).reshape(shape)


class Mlp(nn.Module):
    """Maps images (n, pixels) to scores (n, CLASSES), with a given class of layer."""

    layer: Callable[..., nn.Module]
    hidden: int
    layers: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for _ in range(self.layers):
            x = nn.relu(self.layer(features=self.hidden)(x))
        return nn.Dense(CLASSES)(x)


def init_states(
    layer: Callable[..., nn.Module], rate: float, config: Config, data: Dataset
) -> list[TrainState]:
    """The network with hidden layers of the given class, untrained, for each seed."""
    model = Mlp(layer, config.hidden, config.layers)
    init = jax.jit(model.init)
    steps = config.epochs * (len(data.train_images) // config.batch_size)
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    params = (init(key, data.train_images[:1]) for key in keys)
    return [TrainState.create(apply_fn=model.apply, params=p, tx=tx) for p in params]


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
    """One step of training on a batch."""

    def loss(params: optax.Params) -> jax.Array:
        scores = state.apply_fn(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return losses.mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


@jax.jit
def accuracy(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The percentage of the images whose highest score is their label's."""
    return 100 * jnp.mean(state.apply_fn(state.params, images).argmax(-1) == labels)


def count_flops(config: Config, pixels: int) -> dict[str, int]:
    """FLOPs of each network's matrix products for one image, forward."""
    width = config.hidden
    pairs = [(pixels, width)] + [(width, width)] * (config.layers - 1)
    last = 2 * width * CLASSES
    return {
        "dense": last + sum(2 * n * m for n, m in pairs),
        "butterfly": last + sum(bj.default_chain(n, m).flops for n, m in pairs),
    }


@dataclasses.dataclass(frozen=True)
class Result:
    """What one network achieved."""

    accuracy: NDArray[np.float64]  # on the test set in percent, (seeds, epochs)
    parameters: int  # trained numbers, biases included
    flops: int  # of the matrix products for one image, forward
    step_ms: NDArray[np.float64]  # lower quartile, median and upper quartile


def train(config: Config, data: Dataset, progress: Progress) -> dict[str, Result]:
    """Trains both networks with every seed.

    They take turns, step by step, on the same batches, so that whatever else slows
    the machine slows both. A step is timed from its call until its result is there;
    the first ones, in which JAX compiles, are made beforehand and thrown away.
    """
    rate, butterfly_rate = config.learning_rate, config.butterfly_learning_rate
    networks = {
        "dense": init_states(nn.Dense, rate, config, data),
        "butterfly": init_states(bj.linen.Butterfly, butterfly_rate, config, data),
    }
    test = jax.device_put((data.test_images, data.test_labels))
    count, size = len(data.train_images), config.batch_size
    for states in networks.values():
        batch = data.train_images[:size], data.train_labels[:size]
        jax.block_until_ready(train_step(train_step(states[0], *batch), *batch))
    rng = np.random.default_rng(config.seed)
    times: dict[str, list[float]] = {name: [] for name in networks}
    curves = {name: np.zeros((config.seeds, config.epochs)) for name in networks}
    task = progress.add_task("training", total=config.seeds * config.epochs)
    for seed, epoch in np.ndindex(config.seeds, config.epochs):
        if epoch == 0:
            current = {name: states[seed] for name, states in networks.items()}
        order = rng.permutation(count)[: count // size * size]
        for chosen in order.reshape(-1, size):
            batch = data.train_images[chosen], data.train_labels[chosen]
            on_device = jax.block_until_ready(jax.device_put(batch))
            for name, state in current.items():
                start = time.perf_counter()
                current[name] = jax.block_until_ready(train_step(state, *on_device))
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, state in current.items():
            curves[name][seed, epoch] = accuracy(state, *test)
        progress.update(task, advance=1, refresh=True)
    flops = count_flops(config, data.train_images.shape[1])
    results = {}
    for name, states in networks.items():
        parameters = sum(p.size for p in jax.tree.leaves(states[0].params))
        quartiles = np.quantile(times[name], [0.25, 0.5, 0.75])
        results[name] = Result(curves[name], parameters, flops[name], quartiles)
    return results


def make_table(title: str, results: dict[str, Result]) -> Table:
    """The two networks side by side."""
    table = Table("", *results, "ratio to dense", title=title)
    both = list(results.values())
    finals = [r.accuracy[:, -1] for r in both]
    spreads = [f" ± {f.std(ddof=1):.2f}" if len(f) > 1 else "" for f in finals]
    shown = [f"{f.mean():.2f}{s}" for f, s in zip(finals, spreads, strict=True)]
    table.add_row("test accuracy, %", *shown)
    for heading, counts in (
        ("parameters", [r.parameters for r in both]),
        ("FLOPs per image", [r.flops for r in both]),
    ):
        ratio = f"{counts[1] / counts[0]:.3f}"
        table.add_row(heading, *(f"{count:,}" for count in counts), ratio)
    times = ("{1:.3g} [{0:.3g}, {2:.3g}]".format(*r.step_ms) for r in both)
    ratio = f"{both[1].step_ms[1] / both[0].step_ms[1]:.3f}"
    table.add_row("ms per step", *times, ratio)
    return table


def plot_curves(title: str, results: dict[str, Result]) -> Figure:
    """Test accuracy against epoch: mean, lowest and highest over the seeds."""
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    highest = max(results, key=lambda name: results[name].accuracy[:, -1].mean())
    for (name, result), style in zip(results.items(), ("C0-o", "C1--s"), strict=True):
        runs, color = result.accuracy, style[:2]
        mean, epochs = runs.mean(axis=0), 1 + np.arange(runs.shape[1])
        axes.plot(epochs, mean, style, markersize=3)
        axes.fill_between(epochs, runs.min(0), runs.max(0), color=color, alpha=0.2)
        end, shift = (epochs[-1], mean[-1]), (8, 4 if name == highest else -12)
        axes.annotate(name, end, shift, textcoords="offset points", color=color)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title=title)
    return figure


def main(argv: Sequence[str]) -> None:
    """Trains, prints the table and writes the files."""
    if len(argv) > 1:
        raise app.UsageError(f"flags only, but got {argv[1]!r}")
    fields = [field.name for field in dataclasses.fields(Config)]
    config = Config(**{name: getattr(flags.FLAGS, name) for name in fields})
    folder = pathlib.Path(config.output_dir)
    try:
        make_folder(folder)
        digits = config.dataset == "digits"
        data = read_digits() if digits else read_fashion_mnist(config.data_dir)
        if (count := len(data.train_images)) < config.batch_size:
            raise ValueError(f"--batch_size={config.batch_size}: only {count} images")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        results = train(config, data, progress)
    device = jax.devices()[0].device_kind
    title = f"{config.dataset}, {config.layers} hidden layers of {config.hidden}"
    Console().print(make_table(f"{title}, on {device}", results))
    networks = {name: dataclasses.asdict(result) for name, result in results.items()}
    numbers = {"config": vars(config), "device": device, "networks": networks}
    text = json.dumps(numbers, indent=2, default=np.ndarray.tolist) + "\n"
    write_whole(folder / f"{config.dataset}.json", lambda p: p.write_text(text))
    figure, plot = plot_curves(title, results), folder / f"{config.dataset}.png"
    write_whole(plot, figure.savefig)
    print(f"The learning curves are in {plot}, the numbers beside it.")


if __name__ == "__main__":
    define_flags()
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
