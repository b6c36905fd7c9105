import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console

from examples import image_classifier
from tests import programs

NAME = image_classifier.__name__
TINY = ("--hidden=64", "--layers=2", "--epochs=3", "--seeds=2", "--batch_size=64")

# Worked out by hand, for 64 pixels and two hidden layers of 64. A Monarch matrix of
# 64 × 64 is two factors of 8 blocks of 8 × 8, 1024 weights; each hidden layer has 64
# biases; the last layer is dense, 64 -> 10.
PARAMETERS = {"dense": 8970, "butterfly": 2826}
FLOPS = {"dense": 17664, "butterfly": 5376}


def idx_bytes(entries, *shape):
    header = bytes([0, 0, 8, len(shape)])
    return header + b"".join(n.to_bytes(4, "big") for n in shape) + bytes(entries)


def write_images(folder, part, number, write):
    """Images that are white in one row, which depends on the label."""
    labels = [(7 * i + 3) % 10 for i in range(number)]
    rows = ((255 if row == 2 * label else 0) for label in labels for row in range(28))
    pixels = b"".join(bytes([value] * 28) for value in rows)
    write(folder, f"{part}-images-idx3-ubyte", idx_bytes(pixels, number, 28, 28))
    write(folder, f"{part}-labels-idx1-ubyte", idx_bytes(labels, number))


def write_plain(folder, name, data):
    (folder / name).write_bytes(data)


def write_gzip(folder, name, data):
    (folder / f"{name}.gz").write_bytes(gzip.compress(data))


def make_result(seeds, epochs, level):
    accuracy = level + np.arange(seeds * epochs, dtype=float).reshape(seeds, epochs)
    return image_classifier.Result(accuracy, 1000, 2000, np.array([0.5, 1.0, 2.0]))


def test_digits(tmp_path):
    output = tmp_path / "some" / "folder"
    done = programs.run(NAME, *TINY, f"--output_dir={output}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        "digits.json",
        "digits.png",
    ]
    assert (output / "digits.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(output / "digits.png") in done.stdout.splitlines()[-1]
    numbers = json.loads((output / "digits.json").read_text())
    assert numbers["config"]["hidden"] == 64
    assert numbers["config"]["seeds"] == 2
    for name in ("dense", "butterfly"):
        result = numbers["networks"][name]
        assert result["parameters"] == PARAMETERS[name]
        assert result["flops"] == FLOPS[name]
        assert f"{PARAMETERS[name]:,}" in done.stdout
        assert f"{FLOPS[name]:,}" in done.stdout
        accuracy = np.array(result["accuracy"])
        assert accuracy.shape == (2, 3)
        assert 75 < accuracy[:, -1].min() <= accuracy.max() <= 100
        assert not np.array_equal(accuracy[0], accuracy[1])
        final = accuracy[:, -1]
        spread = abs(final[0] - final[1]) / 2**0.5
        assert f"{final.mean():.2f} ± {spread:.2f}" in done.stdout
        low, median, high = result["step_ms"]
        assert 0 < low <= median <= high
    for ratio in (2826 / 8970, 5376 / 17664):
        assert f"{ratio:.3f}" in done.stdout


def test_fashion_mnist(tmp_path):
    write_images(tmp_path, "train", 320, write_gzip)
    write_images(tmp_path, "t10k", 50, write_plain)
    output = tmp_path / "results"
    flags = ("--dataset=fashion_mnist", f"--data_dir={tmp_path}", "--seeds=1")
    sizes = ("--hidden=32", "--layers=1", "--epochs=4", "--batch_size=32")
    done = programs.call(NAME, *flags, *sizes, f"--output_dir={output}")
    assert done.returncode == 0, done.stderr
    assert (output / "fashion_mnist.png").exists()
    numbers = json.loads((output / "fashion_mnist.json").read_text())
    dense = numbers["networks"]["dense"]
    assert dense["parameters"] == 784 * 32 + 32 + 32 * 10 + 10
    assert dense["flops"] == 2 * (784 * 32 + 32 * 10)
    for result in numbers["networks"].values():
        assert result["accuracy"][0][-1] > 60
    assert "±" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--dataset=fashion_mnist", "--data_dir=/no/such/folder"],
            ["--data_dir=/no/such/folder", "train-images", "dataset-fashion-mnist"],
        ),
        (["--batch_size=1438"], ["--batch_size=1438", "1437"]),
        (["--hidden=0"], ["--hidden=0"]),
        (["--learning_rate=nan"], ["--learning_rate=nan", "(0, inf)"]),
    ],
)
def test_errors_end_the_program(tmp_path, arguments, words):
    done = programs.call(NAME, *arguments, f"--output_dir={tmp_path}")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example():
    done = programs.call(NAME, "--help")
    assert "python -m examples.image_classifier --hidden" in done.stdout
    assert "--butterfly_learning_rate" in done.stdout


@pytest.mark.parametrize("write", [write_plain, write_gzip])
def test_read_idx(tmp_path, write):
    write(tmp_path, "some", idx_bytes([*range(250, 256), *range(18)], 2, 3, 4))
    array = image_classifier.read_idx(str(tmp_path), "some")
    assert array.shape == (2, 3, 4)
    assert array.dtype == np.uint8
    assert array[0, 0].tolist() == [250, 251, 252, 253]
    assert array[0, 1].tolist() == [254, 255, 0, 1]
    assert array[1, 2].tolist() == [14, 15, 16, 17]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX header"),
        (b"\x00\x00\x08", "not an IDX header of unsigned bytes: 00 00 08"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "not an IDX header .* 00 00 0d 01"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX header"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x01", "not an IDX header"),
        (idx_bytes(range(5), 2, 3), r"says \(2, 3\), but 5 bytes follow"),
        (idx_bytes(range(7), 2, 3), r"says \(2, 3\), but 7 bytes follow"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16 + b"\x00", "but 1 bytes follow"),
    ],
)
def test_corrupt_idx(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        image_classifier.parse_idx(data)
    write_plain(tmp_path, "some", data)
    with pytest.raises(ValueError, match=f"^{tmp_path}/some: .*{message}"):
        image_classifier.read_idx(str(tmp_path), "some")


def test_corrupt_gzip(tmp_path):
    whole = gzip.compress(idx_bytes(range(200), 200))
    bad_checksum = whole[:-8] + bytes(8)
    bad_stream = whole[:10] + b"\xff" * len(whole[10:])
    for data in (b"not gzip at all", whole[:-9], bad_checksum, bad_stream):
        (tmp_path / "some.gz").write_bytes(data)
        with pytest.raises(ValueError, match=f"^{tmp_path}/some.gz: ."):
            image_classifier.read_idx(str(tmp_path), "some")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (idx_bytes(bytes(2 * 784), 2, 28, 28), idx_bytes([1, 2, 3], 3)),
        (idx_bytes(bytes(2 * 784), 2, 28, 28), idx_bytes([1, 10], 2)),
        (idx_bytes(bytes(2 * 9), 2, 3, 3), idx_bytes([1, 2], 2)),
        (idx_bytes([], 0, 28, 28), idx_bytes([], 0)),
        (idx_bytes([5]), idx_bytes([5])),
    ],
)
def test_images_that_do_not_fit_their_labels(tmp_path, images, labels):
    write_plain(tmp_path, "train-images-idx3-ubyte", images)
    write_plain(tmp_path, "train-labels-idx1-ubyte", labels)
    with pytest.raises(ValueError, match="train is not 28 × 28 images"):
        image_classifier.read_fashion_mnist(str(tmp_path))


def test_fashion_mnist_is_scaled(tmp_path):
    write_images(tmp_path, "train", 20, write_plain)
    write_images(tmp_path, "t10k", 10, write_gzip)
    data = image_classifier.read_fashion_mnist(str(tmp_path))
    assert data.train_images.shape == (20, 784)
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert data.test_labels.tolist() == [3, 0, 7, 4, 1, 8, 5, 2, 9, 6]
    image = data.test_images[0].reshape(28, 28)
    assert (image[6] == 1).all()
    assert image.sum() == 28


def test_digits_are_always_split_the_same_way():
    first, second = image_classifier.read_digits(), image_classifier.read_digits()
    assert first.train_images.shape == (1437, 64)
    assert first.test_images.shape == (360, 64)
    assert first.train_images.min() == 0
    assert first.train_images.max() == 1
    np.testing.assert_array_equal(first.test_images, second.test_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    assert np.bincount(first.test_labels).min() >= 30


def test_table_of_one_seed():
    results = {"dense": make_result(1, 2, 80), "butterfly": make_result(1, 2, 90)}
    shown = io.StringIO()
    table = image_classifier.make_table("a title", results)
    Console(width=100, file=shown).print(table)
    text = shown.getvalue()
    assert "±" not in text
    for word in ("a title", "81.00", "91.00", "1,000", "1 [0.5, 2]", "1.000"):
        assert word in text


@pytest.mark.parametrize(("seeds", "epochs"), [(1, 1), (3, 4)])
def test_plot_is_readable_without_colour(tmp_path, seeds, epochs):
    results = {
        "dense": make_result(seeds, epochs, 80),
        "butterfly": make_result(seeds, epochs, 80),
    }
    figure = image_classifier.plot_curves("a title", results)
    (axes,) = figure.axes
    assert len({line.get_linestyle() for line in axes.lines}) == 2
    assert [text.get_text() for text in axes.texts] == ["dense", "butterfly"]
    figure.savefig(tmp_path / "plot.png")
    one, other = (text.get_window_extent() for text in axes.texts)
    assert not one.overlaps(other)


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "file.txt"

    def fail(part):
        part.write_text("half")
        raise RuntimeError("disk full")

    image_classifier.write_whole(path, lambda part: part.write_text("old"))
    with pytest.raises(RuntimeError, match="disk full"):
        image_classifier.write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    image_classifier.write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new"
