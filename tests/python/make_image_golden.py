"""Writes tests/golden/image/: small image files, and what the reference makes of them.

    python tests/python/make_image_golden.py

needs Pillow 13, numpy, safetensors, transformers 5.23 and open_clip 3.3. Everything is drawn from fixed seeds. The folder gets

- image files of every format and channel layout,
- resize.safetensors: `SOURCE` (H,W,3) and `SOURCE/FILTER/HxW` (H,W,3), u8, by PIL.Image.resize,
- PROCESSOR.json: processor configurations as their classes save them,
- pixels.safetensors: `PROCESSOR/FILE` (C,H,W), f32, the processor's pixel_values of PIL.Image.open(FILE), turned upright,
- spellings.json: configurations as old and new versions of transformers wrote them, and classes for those that name none;
  spellings.safetensors: `INDEX` (C,H,W), f32, the pixel_values of rgb.png,
- open_clip.json: preprocess_cfgs; open_clip.safetensors: `INDEX/FILE` (H,W,3), u8, what open_clip's transform has before
  it divides by 255, and `INDEX` (C,H,W), f32, what it gives for rgb.png,
- naflex.json: configurations of SigLIP 2's processor; naflex.safetensors: `INDEX/FILE` (N,p*p*C), f32, and
  `INDEX/FILE/shape` (2), i64, rows and columns of patches.
"""

import json

import struct
import zlib
from pathlib import Path

import numpy as np
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

OUT = Path(__file__).resolve().parent.parent / "golden" / "image"
FILTERS = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming", "mks2013", "mks2021"]


def photo(height, width, seed):
    """Smooth shading with a few edges and a little noise, like a small photo; (H,W,3) u8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width, 2)
    channels = []
    for _ in range(3):
        a, b, c, d = rng.uniform(1, 5, 4)
        wave = 127 + 55 * np.sin(a * x + b * y + c) + 45 * np.cos(d * x * y + a)
        wave += 40 * ((x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < 0.05)
        channels.append(wave + rng.normal(0, 3, wave.shape))
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(path, rows, depth, colour, extra=b""):
    """A PNG of raw rows, for the layouts that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = rows[0]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"".join(b"\0" + row for row in rows[1])
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def png16(path, array, colour):
    rows = [row.astype(">u2").tobytes() for row in array]
    png(path, (array.shape[:2], rows), 16, colour)


def write_inputs():
    rgb = photo(29, 38, 1)
    image = Image.fromarray(rgb)
    alpha = np.linspace(0, 255, 29 * 38).reshape(29, 38).astype(np.uint8)
    grey = image.convert("L")

    image.save(OUT / "rgb.png")
    Image.fromarray(photo(61, 23, 2)).save(OUT / "tall.png")
    Image.fromarray(photo(9, 70, 3)).save(OUT / "wide.png")
    Image.fromarray(photo(5, 7, 4)).save(OUT / "small.png")
    Image.fromarray(noise(1, 1, 5)).save(OUT / "one.png")
    Image.fromarray(noise(1, 20, 6)).save(OUT / "row.png")
    Image.fromarray(noise(20, 1, 7)).save(OUT / "column.png")
    grey.save(OUT / "grey.png")
    Image.fromarray(np.dstack([np.array(grey), alpha])).save(OUT / "grey_alpha.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(OUT / "rgba.png")
    image.quantize(20).save(OUT / "palette.png")
    transparent = image.quantize(20)
    transparent.save(OUT / "palette_transparent.png", transparency=bytes([0, 60, 255, 128] * 5))
    transparent.save(OUT / "palette_one_transparent.png", transparency=3)
    grey.save(OUT / "grey_transparent.png", transparency=int(np.median(np.array(grey))))
    image.save(OUT / "rgb_transparent.png", transparency=tuple(int(v) for v in rgb[10, 10]))
    grey.convert("1").save(OUT / "one_bit.png")
    grey.quantize(4).save(OUT / "palette_two_bit.png", bits=2)

    deep = rgb.astype(np.uint16) * 256 + noise(29, 38, 8)
    png16(OUT / "rgb16.png", deep[:16, :20], 2)
    png16(OUT / "rgba16.png", np.dstack([deep, alpha.astype(np.uint16) * 256 + 17])[:16, :20], 6)
    png16(OUT / "grey_alpha16.png", np.dstack([deep[..., 0], alpha.astype(np.uint16) * 256 + 200])[:16, :20], 4)
    png16(OUT / "grey16.png", deep[:16, :20, 0], 0)

    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(OUT / "exif.png", exif=exif)

    picture = Image.fromarray(photo(40, 52, 9))
    picture.save(OUT / "baseline.jpg", quality=90)
    picture.save(OUT / "progressive.jpg", quality=90, progressive=True)
    picture.save(OUT / "full_chroma.jpg", quality=90, subsampling=0)
    picture.convert("L").save(OUT / "grey.jpg", quality=90)
    picture.convert("CMYK").save(OUT / "cmyk.jpg", quality=90)
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.fromarray(photo(16, 24, 10)).save(OUT / f"exif{orientation}.jpg", quality=90, exif=exif)

    image.save(OUT / "lossless.webp", lossless=True)
    Image.fromarray(np.dstack([rgb, alpha])).save(OUT / "alpha.webp", lossless=True, exact=True)
    image.save(OUT / "lossy.webp", quality=90)
    image.save(OUT / "still.gif")
    transparent.save(OUT / "transparent.gif", transparency=3)
    frames = [Image.fromarray(photo(16, 20, seed)).quantize(16) for seed in (11, 12)]
    frames[0].save(OUT / "animated.gif", save_all=True, append_images=frames[1:])
    image.crop((0, 0, 25, 20)).save(OUT / "rgb.bmp")
    grey.crop((0, 0, 25, 20)).save(OUT / "grey.bmp")
    image.quantize(16).crop((0, 0, 25, 20)).save(OUT / "palette.bmp")


def processors():
    small = {"size": {"shortest_edge": 11}, "crop_size": {"height": 8, "width": 8}}
    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size=8),
        "clip_pad": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 12, "width": 13}),
        "dinov2": BitImageProcessorPil(**small, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
        "vit": ViTImageProcessorPil(size=9),
        "deit": DeiTImageProcessorPil(size=11, crop_size=8),
        "siglip": SiglipImageProcessorPil(size={"height": 10, "width": 13}),
        "blip": BlipImageProcessorPil(size=8, resample=1),
        "beit": BeitImageProcessorPil(size=9, do_center_crop=True, crop_size=8),
        "chinese_clip": ChineseCLIPImageProcessorPil(size=10, crop_size=9),
        "edges": CLIPImageProcessorPil(
            size={"shortest_edge": 12, "longest_edge": 16}, do_center_crop=False, do_normalize=False
        ),
        "raw": CLIPImageProcessorPil(size={"shortest_edge": 12}, resample=0, crop_size=8, do_rescale=False),
    }


MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# How the files of published checkpoints are written, with smaller sizes: the class that transformers takes, and the file.
SPELLINGS = [
    # OpenAI's CLIP.
    (CLIPImageProcessorPil, {
        "crop_size": 7, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3, "size": 8}),
    # The same where the file names no class.
    (CLIPImageProcessorPil, {"crop_size": 7, "size": 8, "resample": 3}),
    # Chinese-CLIP.
    (ChineseCLIPImageProcessorPil, {
        "crop_size": {"height": 7, "width": 7}, "do_center_crop": True, "do_convert_rgb": True,
        "feature_extractor_type": "ChineseCLIPFeatureExtractor", "image_processor_type": "ChineseCLIPFeatureExtractor",
        "resample": 3, "size": {"height": 8, "width": 8}}),
    # ViT, old and with the class's default for whole numbers overruled.
    (ViTImageProcessorPil, {
        "do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 8,
        "resample": 2, "feature_extractor_type": "ViTFeatureExtractor"}),
    (ViTImageProcessorPil, {"image_processor_type": "ViTImageProcessor", "size": 6, "default_to_square": False}),
    (DeiTImageProcessorPil, {"feature_extractor_type": "DeiTFeatureExtractor", "size": 9, "crop_size": 8, "resample": 3}),
    (BeitImageProcessorPil, {
        "crop_size": 7, "do_center_crop": False, "feature_extractor_type": "BeitFeatureExtractor", "resample": 2, "size": 8}),
    # BLIP; all images have one size, so that there is nothing to pad.
    (BlipImageProcessorPil, {
        "do_pad": True, "image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor", "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"height": 8, "width": 8}, "size_divisor": 32}),
    # SigLIP as transformers 4's fast processors wrote it.
    (SiglipImageProcessorPil, {
        "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
        "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessorFast", "image_std": [0.5, 0.5, 0.5], "input_data_format": None,
        "resample": 2, "return_tensors": None, "size": {"height": 7, "width": 9}}),
    # DINOv2.
    (BitImageProcessorPil, {
        "crop_size": {"height": 7, "width": 7}, "do_convert_rgb": True, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
        "size": {"shortest_edge": 8}}),
    # Sizes as lists, one mean for all channels, single steps.
    (CLIPImageProcessorPil, {
        "image_processor_type": "CLIPImageProcessor", "size": [6, 9], "crop_size": [5, 7], "image_mean": 0.25,
        "image_std": 0.75, "rescale_factor": 0.01, "resample": 5}),
    (CLIPImageProcessorPil, {
        "image_processor_type": "CLIPImageProcessorFast", "do_resize": False, "crop_size": {"height": 6, "width": 50},
        "do_normalize": False, "do_rescale": True}),
    # What transformers 5 writes.
    (CLIPImageProcessorPil, {
        "image_processor": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 7},
        "processor_class": "CLIPProcessor"}),
]

PREPROCESS_CFGS = [
    {"size": 8},
    {"size": [9, 8], "resize_mode": "longest", "fill_color": 3},
    {"size": [7, 10], "interpolation": "bilinear"},
    {"size": 8, "resize_mode": "squash", "interpolation": "bilinear", "mean": [0.0, 0.1, 0.2], "std": [1, 0.9, 0.8]},
    {"size": 6, "resize_mode": "longest", "interpolation": "random", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
]


def upright(file):
    return ImageOps.exif_transpose(Image.open(OUT / file))


def write_spellings():
    pixels, entries = {}, []
    for index, (kind, config) in enumerate(SPELLINGS):
        processor = kind.from_dict(dict(config.get("image_processor", config)))
        pixels[str(index)] = processor(upright("rgb.png"), return_tensors="np")["pixel_values"][0]
        entries.append({"class": kind.__name__.removesuffix("Pil"), "config": config})
    (OUT / "spellings.json").write_text(json.dumps(entries, indent=1))
    save_file(pixels, OUT / "spellings.safetensors")


def write_open_clip(files, few):
    pixels = {}
    for index, config in enumerate(PREPROCESS_CFGS):
        transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
        pixels[str(index)] = transform(upright("rgb.png")).numpy()
        for file in files if index < 2 else few:
            # A row cannot be made to fit: Pillow refuses images without height.
            if file == "grey16.png" or (config.get("resize_mode") == "longest" and file in ("row.png", "column.png")):
                continue
            image = upright(file)
            for step in transform.transforms[:-2]:
                image = step(image)
            pixels[f"{index}/{file}"] = np.array(image)
    (OUT / "open_clip.json").write_text(json.dumps(PREPROCESS_CFGS, indent=1))
    save_file(pixels, OUT / "open_clip.safetensors")


def write_naflex(few):
    processors = [
        Siglip2ImageProcessorPil(patch_size=3, max_num_patches=10, do_convert_rgb=True),
        Siglip2ImageProcessorPil(patch_size=2, max_num_patches=7, resample=3, do_normalize=False),
    ]
    patches = {}
    for index, processor in enumerate(processors):
        for file in few + ["rgba.png"] * (index == 0):
            batch = processor(upright(file), return_tensors="np")
            assert batch["pixel_attention_mask"].sum() == batch["spatial_shapes"].prod()
            patches[f"{index}/{file}"] = batch["pixel_values"][0].astype(np.float32)
            patches[f"{index}/{file}/shape"] = batch["spatial_shapes"][0].astype(np.int64)
    (OUT / "naflex.json").write_text(json.dumps([json.loads(p.to_json_string()) for p in processors], indent=1))
    save_file(patches, OUT / "naflex.safetensors")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    write_inputs()

    resized = {}
    sources = {"photo": photo(31, 43, 20), "noise": noise(17, 13, 21), "row": noise(1, 9, 22), "one": noise(1, 1, 23)}
    # 31×43 to 9×33 and 11×33: the height loses more than twice as many pixels as the width, and exactly twice as many.
    sizes = {"photo": [(16, 16), (31, 11), (7, 43), (9, 33), (11, 33), (1, 1)], "noise": [(19, 16), (17, 13), (5, 13), (7, 9), (2, 30)]}
    for name, array in sources.items():
        resized[name] = array
        for height, width in sizes.get(name, [(4, 6), (3, 1)]):
            for number, filter in enumerate(FILTERS):
                result = Image.fromarray(array).resize((width, height), resample=number)
                resized[f"{name}/{filter}/{height}x{width}"] = np.array(result)
    save_file(resized, OUT / "resize.safetensors")

    pixels = {}
    files = sorted(path.name for path in OUT.iterdir() if path.suffix in {".png", ".jpg", ".webp", ".gif", ".bmp"})
    few = ["rgb.png", "tall.png", "wide.png", "small.png", "one.png", "row.png", "column.png"]
    for name, processor in processors().items():
        (OUT / f"{name}.json").write_text(processor.to_json_string())
        for file in files if name == "clip" else few:
            # Pillow clips 16-bit grey at 255 instead of scaling it: nothing to compare with.
            if file == "grey16.png":
                continue
            pixels[f"{name}/{file}"] = processor(upright(file), return_tensors="np")["pixel_values"][0]
    save_file(pixels, OUT / "pixels.safetensors")
    write_spellings()
    write_open_clip(files, few)
    write_naflex(few)
    print(f"{sum(path.stat().st_size for path in OUT.iterdir()) / 1e3:.0f} kB in {OUT}")


if __name__ == "__main__":
    main()
