"""Writes `tests/golden/training_clip` and `training_siglip`: fifty training steps of the tiny models `clip` and `siglip` in PyTorch.

`python make_training_golden.py`; what is in `training.safetensors` stands in `training_steps.py`. Changes of weights are kept in f16: they
are small against the weights, so nothing that the test looks at is lost.
Written with transformers 5.23.0, torch 2.11.0 (CPU).
"""

import torch
import transformers as tf

from golden_folder import GOLDEN, begin, check_size, save_tensors
from training_steps import runs, token_rows

BATCH, BATCHES = 6, 4


def batches(config, siglip):
    generator = torch.Generator().manual_seed(7)
    text = config.text_config
    length, size = 12 if not siglip else text.max_position_embeddings, config.vision_config.image_size
    made = []
    for _ in range(BATCHES):
        first, last, pad = ([], [], 1) if siglip else ([text.bos_token_id], [text.eos_token_id], 1)
        ids, mask = token_rows(generator, BATCH, length, first, last, (5, 60), pad)
        pixels = torch.randn(BATCH, 3, size, size, generator=generator)
        made.append({"input_ids": ids, "pixel_values": pixels} | ({} if siglip else {"attention_mask": mask}))
    return made


for name in ("clip", "siglip"):
    model = tf.AutoModel.from_pretrained(GOLDEN / name)
    folder = begin(f"training_{name}")
    tensors = runs(model, [name], batches(model.config, name == "siglip"), 1e-4)
    save_tensors(tensors, folder / "training.safetensors")
    print(folder.name, check_size(folder), "bytes")
