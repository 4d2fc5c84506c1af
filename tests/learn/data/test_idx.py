"""Reading IDX files: hand-made bytes, both spellings, and every way a file can be damaged."""

from __future__ import annotations

import gzip
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from fedsim.learn.data import idx

DATA = Path(os.environ.get("FEDSIM_DATA") or Path(__file__).parents[4] / "shared" / "data")


def encoded(values: np.ndarray, code: int) -> bytes:
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def test_reads_bytes_written_by_hand(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255]))
    assert idx.read(file).tolist() == [[1, 2, 3], [4, 5, 255]]


def test_multi_byte_values_are_big_endian(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 0, 0xFF, 0xFF]))
    values = idx.read(file)
    assert values.tolist() == [256, -1]
    assert values.dtype == np.int16
    assert values.dtype.isnative


@settings(max_examples=40, deadline=None)
@given(
    code=st.sampled_from(sorted(idx.TYPES)),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    compressed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_whatever_is_written_is_read_back(code, shape, compressed, seed):
    dtype = np.dtype(idx.TYPES[code])
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    data = encoded(values, code)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a"
        file.write_bytes(gzip.compress(data) if compressed else data)
        read = idx.read(file)
    assert read.shape == tuple(shape)
    assert read.dtype == dtype.newbyteorder("=")
    assert read.flags.writeable
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not nothing"),
        (b"\x89PNG\r\n", "89 50 4e 47"),
        (bytes([0, 0, 7, 1, 0, 0, 0, 0]), "00 00 07 01"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1]), "after 8 of 16 bytes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "holds 2 bytes of values, but its header (3,) means 3"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "holds more bytes of values, but its header (1,) means 1"),
        (bytes([0, 0, 14, 4]) + b"\xff" * 16, f"means {8 * (2**32 - 1) ** 4}"),
    ],
)
def test_damaged_files_are_refused(tmp_path, data, words):
    file = tmp_path / "a"
    file.write_bytes(data)
    with pytest.raises(BadValue) as caught:
        idx.read(file)
    assert caught.value.key == "path"
    assert words in caught.value.rule


def test_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress(encoded(np.arange(200, dtype=np.uint8), 8))
    broken = bytearray(whole)
    broken[-6] ^= 0xFF
    for number, data in enumerate([whole[:30], whole[:-3], bytes(broken), b"\x1f\x8b\x00junkjunkjunk"]):
        file = tmp_path / str(number)
        file.write_bytes(data)
        with pytest.raises(BadValue, match="damaged gzip"):
            idx.read(file)


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name, why in (
        ("absent", "No such file or directory"),
        ("folder", "Is a directory"),
        ("link", "No such file or directory"),
        ("n" * 300, "File name too long"),
    ):
        with pytest.raises(BadValue) as caught:
            idx.read(tmp_path / name)
        assert caught.value.rule == f"cannot be read ({why})"


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    # The header says 3 bytes; 256 MB of zeros follow, which gzip makes a thousand times smaller.
    file = tmp_path / "bomb"
    with gzip.open(file, "wb") as packed:
        packed.write(bytes([0, 0, 8, 1, 0, 0, 0, 3]))
        for _ in range(256):
            packed.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(BadValue, match=r"holds more bytes of values, but its header \(3,\) means 3"):
        idx.read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_folder_comes_from_the_root_or_else_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert idx.folder("mnist", "MNIST") == tmp_path / "MNIST" / "raw"
    assert idx.folder("mnist", "MNIST", Path()) == Path("MNIST/raw")
    monkeypatch.setenv("FEDSIM_DATA", "")
    with pytest.raises(BadValue, match=r"no data folder is set; set FEDSIM_DATA or data\.root") as caught:
        idx.folder("mnist", "MNIST")
    assert (caught.value.key, caught.value.value) == ("name", "mnist")


def test_labelled_images_prefers_the_plain_file(tmp_path):
    images, labels = np.zeros((2, 1, 1), np.uint8), np.array([3, 4], np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(encoded(images, 8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encoded(labels, 8))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b not looked at")
    assert idx.has_part("mnist", tmp_path, "train")
    assert not idx.has_part("mnist", tmp_path, "t10k")
    assert idx.labelled_images("mnist", tmp_path, "train")[1].tolist() == [3, 4]


def test_images_without_labels_name_the_missing_files(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encoded(np.zeros((2, 1, 1), np.uint8), 8))
    with pytest.raises(BadValue) as caught:
        idx.labelled_images("mnist", tmp_path, "train")
    plain = tmp_path / "train-labels-idx1-ubyte"
    assert caught.value.rule == f"its files were not found: {plain}, {plain}.gz"


@pytest.mark.parametrize(("images", "labels"), [((2, 1, 1), (3,)), ((2, 4), (2,)), ((2, 1, 1), (2, 1))])
def test_images_and_labels_must_fit(tmp_path, images, labels):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encoded(np.zeros(images, np.uint8), 8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encoded(np.zeros(labels, np.uint8), 8))
    with pytest.raises(BadValue) as caught:
        idx.labelled_images("mnist", tmp_path, "train")
    assert str(images) in caught.value.rule
    assert str(labels) in caught.value.rule


@pytest.mark.parametrize("shape", [(2, 0, 28), (2, 28, 0)])
def test_images_without_pixels_are_refused(tmp_path, shape):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encoded(np.zeros(shape, np.uint8), 8))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encoded(np.zeros(2, np.uint8), 8))
    with pytest.raises(BadValue, match="hold no pixel"):
        idx.labelled_images("mnist", tmp_path, "train")


@pytest.mark.parametrize(("images", "labels"), [(0x0D, 8), (0x09, 8), (8, 0x0D)])
def test_pixels_are_bytes_and_labels_whole(tmp_path, images, labels):
    # A loader that divides by 255 and cuts labels off would make other data of them, without a word.
    pixels, classes = np.ones((2, 3, 3)), np.array([1.7, 2.2])
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(encoded(pixels.astype(idx.TYPES[images]), images))
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(encoded(classes.astype(idx.TYPES[labels]), labels))
    with pytest.raises(BadValue, match="which must be uint8 and whole numbers"):
        idx.labelled_images("mnist", tmp_path, "train")


@pytest.mark.parametrize(
    "name",
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz", "train-images.idx3-ubyte", "train-x.part"],
)
def test_a_broken_download_is_neither_there_nor_absent(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadValue, match="a part of its train files is in") as caught:
        idx.has_part("mnist", tmp_path, "train")
    assert (caught.value.key, caught.value.value) == ("name", "mnist")
    assert name in caught.value.rule


def test_a_link_to_nothing_is_a_broken_download(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").symlink_to(tmp_path / "nothing")
    with pytest.raises(BadValue, match="a part of its train files is in"):
        idx.has_part("mnist", tmp_path, "train")


def test_the_real_files():
    raw = DATA / "MNIST" / "raw"
    if not idx.has_part("mnist", raw, "t10k"):
        pytest.skip("MNIST's test files are not in the data folder (set FEDSIM_DATA)")
    images, labels = idx.labelled_images("mnist", raw, "t10k")
    assert images.shape == (10000, 28, 28)
    assert images.max() == 255
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
