"""What the scripts share that write golden folders: where these lie, how one is begun, and how its numbers are judged."""

import shutil
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def registry(prefix=""):
    """The makers of folders by the folder's name, and the decorator that adds one: a function named as its folder after
    `prefix`."""
    makers = {}

    def golden(make):
        makers[prefix + make.__name__] = make
        return make

    return makers, golden


def begin(name, seed=0):
    """An empty folder `name`, and random numbers that depend on its name alone. `seed`: another draw, where the first is
    ill conditioned."""
    torch.manual_seed(zlib.crc32(name.encode()) + seed)
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save(tensors, path, metadata=None):
    """Writes tensors that may be views of each other."""
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata)


def check_double(name, expected, found, largest=3e-6):
    """The numbers are finite and well conditioned: f64 agrees far below the tolerance of the tests."""
    for key, value in expected.items():
        error = (value - found[key]).abs().max() / found[key].abs().max()
        assert torch.isfinite(value).all() and error < largest, f"{name}: {key} is off by {error:.1e} in f32"


def check_size(folder):
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 300_000, f"{folder.name}: {size} bytes"
    return size
