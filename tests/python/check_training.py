"""Fifty training steps of MiniLM + DINOv2 ViT-S in PyTorch and in this crate: the same weights, batches and order.

`python check_training.py TOWERS [--work DIR] [--size 112] [--batch 8]`, TOWERS holding `minilm` and `dinov2-small`. Runs cross-entropy and the sigmoid loss,
everything trained and the image tower frozen; then `cargo test` compares: losses within 1e-4 at every step, weights within 1e-3 of each
tensor's largest value (`tests/training_golden.rs`). Pixels and ids are random; at larger rates such a run goes over a saddle where PyTorch with one thread
and with two part by percents too. Options after `--` go to cargo.
"""

import argparse
import os
import pathlib
import subprocess
import sys

try:
    import torch
    import transformers as tf
    from safetensors.torch import save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

from training_steps import runs, token_rows

parser = argparse.ArgumentParser()
parser.add_argument("towers", type=pathlib.Path)
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/check_training"))
parser.add_argument("--size", type=int, default=112)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rate", type=float, default=2e-6)
parser.add_argument("--threads", type=int)
parser.add_argument("--losses", default="clip,siglip")
parser.add_argument("--no-cargo", action="store_true", help="write the reference only")
parser.add_argument("cargo", nargs="*", help="options for cargo")
args = parser.parse_args()
if not (args.towers / "minilm").is_dir():
    print(f"skipped: {args.towers} holds no minilm")
    sys.exit(0)
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = tf.VisionTextDualEncoderModel.from_vision_text_pretrained(args.towers / "dinov2-small", args.towers / "minilm")
start = args.work / "start"
model.save_pretrained(start)
tf.AutoTokenizer.from_pretrained(args.towers / "minilm").save_pretrained(start)
tf.AutoImageProcessor.from_pretrained(args.towers / "dinov2-small").save_pretrained(start)
generator = torch.Generator().manual_seed(7)
batches = []
for _ in range(4):
    ids, mask = token_rows(generator, args.batch, 24, [101], [102], (1000, 30000), 0)
    pixels = torch.randn(args.batch, 3, args.size, args.size, generator=generator)
    batches.append({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
tensors = runs(model, args.losses.split(","), batches, args.rate, args.work)
save_file({key: value.clone().contiguous() for key, value in tensors.items()}, args.work / "training.safetensors")
if not args.no_cargo:
    command = ["cargo", *args.cargo, "test", "--release", "--test", "training_golden", "--", "--ignored", "--nocapture"]
    sys.exit(subprocess.call(command, env=os.environ | {"TRAINING_FOLDER": str(args.work.resolve())}))
