"""Writes tests/golden/image/color.safetensors: changes of colour and crops, as torchvision makes them of PIL images.

    python tests/python/make_color_golden.py

needs torchvision 0.26, Pillow 13, numpy, safetensors. `image` (H,W,3) holds colours of every kind; `STEP/FACTOR` (H,W,3), all u8.
`crop/TOP,LEFT,HEIGHT,WIDTH/EDGE` is torchvision's resized_crop of `image`, bicubic with antialiasing. `all/STEP/FACTOR` are
FNV-1a hashes over all 16,777,216 colours in order, for steps that look at one pixel at a time.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

OUT = Path(__file__).resolve().parent.parent / "golden" / "image" / "color.safetensors"
FACTORS = {
    "brightness": [0.0, 0.37, 1.0, 1.4, 2.5],
    "contrast": [0.0, 0.63, 1.0, 1.4, 3.0],
    "saturation": [0.0, 0.61, 1.0, 1.4, 4.0],
    "hue": [-0.5, -0.1, -0.033, 0.0, 0.07, 0.1, 0.5],
}
STEPS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def fnv(values):
    """FNV-1a over 64-bit little-endian words."""
    state = 0xCBF29CE484222325
    for word in np.frombuffer(values.tobytes(), "<u8").tolist():
        state = ((state ^ word) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return np.frombuffer(np.uint64(state).tobytes(), np.int64)


def main():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 48, 3), np.uint8)
    noise[:8] = noise[:8, :, :1]  # greys
    noise[8:16, :, 1:] = rng.choice([0, 1, 127, 128, 254, 255], (8, 48, 2))
    image = Image.fromarray(noise)
    tensors = {"image": noise}
    for step, factors in FACTORS.items():
        for factor in factors:
            tensors[f"{step}/{factor}"] = np.array(STEPS[step](image, factor))
    tensors["gray/0"] = np.array(F.to_grayscale(image, 3))
    for top, left, height, width, edge in [(0, 0, 40, 48, 24), (3, 5, 30, 33, 16), (11, 7, 9, 12, 32)]:
        crop = F.resized_crop(image, top, left, height, width, [edge, edge], InterpolationMode.BICUBIC, antialias=True)
        tensors[f"crop/{top},{left},{height},{width}/{edge}"] = np.array(crop)
    every = np.arange(1 << 24, dtype=np.uint32)
    every = np.stack([every >> 16, every >> 8 & 255, every & 255], 1).astype(np.uint8).reshape(4096, 4096, 3)
    every = Image.fromarray(every)
    for name, changed in [
        ("hue/0.07", F.adjust_hue(every, 0.07)),
        ("saturation/1.4", F.adjust_saturation(every, 1.4)),
        ("gray/0", F.to_grayscale(every, 3)),
    ]:
        tensors[f"all/{name}"] = fnv(np.array(changed))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, OUT)
    print(f"{OUT}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
