"""What the training scripts share: fifty steps of a dual encoder in PyTorch, and what they leave.

A step: the model's own logits, symmetric cross-entropy or the sigmoid loss, AdamW (decay 0.05 on tensors of rank two and more), and with
cross-entropy the scale clamped to [0, ln 100]. Batches come in turn. The rate is the same in all steps.

`training.safetensors` holds `rate`, `input_ids` (n,B,L), `attention_mask`, `pixel_values` (n,B,C,H,W); for each run `RUN.losses` (50, f64) and
`RUN.change.NAME`, the last weights less the first (or `last_RUN` beside it holds the last). RUN is `clip` or `siglip` (the loss), then `_full` or `_frozen` (the image tower).
"""

import copy
import math

import torch
import torch.nn.functional as F

STEPS, DECAY = 50, 0.05


def loss_of(kind, logits):
    if kind == "clip":
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def fifty_steps(start, kind, frozen, batches, rate):
    """The losses, the changes of the weights by name, and the trained model."""
    model = copy.deepcopy(start).eval()  # no dropout
    if frozen:
        model.vision_model.requires_grad_(False)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    before = {name: p.detach().clone() for name, p in trained}
    groups = [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate)
    losses = []
    for step in range(STEPS):
        loss = loss_of(kind, model(**batches[step % len(batches)]).logits_per_image)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if kind == "clip":
            model.logit_scale.data.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses, {name: p.detach() - before[name] for name, p in trained}, model


def runs(start, kinds, batches, rate, folder=None):
    """The content of `training.safetensors`, the changes as f16; or the trained models in `folder`, as `last_RUN`, instead of changes."""
    tensors = {key: torch.stack([batch[key] for batch in batches]) for key in batches[0]}
    tensors["rate"] = torch.tensor(rate, dtype=torch.float64)
    for kind in kinds:
        for frozen in (False, True):
            run = f"{kind}_{'frozen' if frozen else 'full'}"
            losses, changes, model = fifty_steps(start, kind, frozen, batches, rate)
            print(f"{run}: loss {losses[0]:.4f} → {losses[-1]:.4f}", flush=True)
            tensors[f"{run}.losses"] = torch.tensor(losses, dtype=torch.float64)
            if folder:
                model.save_pretrained(folder / f"last_{run}")
                continue
            # Parameters that no gradient reaches (an unused mask token) are not the model's.
            tensors.update({f"{run}.change.{name}": c.half() for name, c in changes.items() if c.abs().max() > 0})
    return tensors


def token_rows(generator, batch, length, first, last, ids, pad):
    """Random texts of different lengths between `first` and `last`."""
    rows, masks = [], []
    for _ in range(batch):
        count = int(torch.randint(length // 2, length + 1, (1,), generator=generator))
        middle = torch.randint(*ids, (count - len(first) - len(last),), generator=generator).tolist()
        rows.append(first + middle + last + [pad] * (length - count))
        masks.append([1] * count + [0] * (length - count))
    return torch.tensor(rows), torch.tensor(masks)
