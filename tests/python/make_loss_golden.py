"""Golden numbers of the losses: values and gradients by PyTorch, through the reference's own code where there is one.

Usage: python tests/python/make_loss_golden.py     (writes tests/golden/losses/golden.safetensors)

Every case has the gradients of its loss with respect to images, texts, scale and bias.
"""

from pathlib import Path

import open_clip.loss as reference
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.functional import normalize

OUT = Path(__file__).resolve().parents[1] / "golden" / "losses"


def cross_entropy(logits, positives, smoothing=0.0):
    """Soft targets over rows that have any."""
    rows = positives.sum(1) > 0
    targets = positives[rows] / positives[rows].sum(1, keepdim=True)
    return F.cross_entropy(logits[rows], targets, label_smoothing=smoothing)


def symmetric(logits, positives, **options):
    return (cross_entropy(logits, positives, **options) + cross_entropy(logits.T, positives.T, **options)) / 2


def hard(logits, positives, beta, alpha):
    """HN-NCE for one positive a row, as the paper writes it, in float64."""
    total = 0
    for i in range(len(logits)):
        p = positives[i].bool()
        z, count = logits[i], (~p).sum()
        weights = count * (beta * z[~p]).exp() / (beta * z[~p]).exp().sum()
        below = alpha * z[p].exp().sum() + (weights * z[~p].exp()).sum()
        total = total - (z[p].mean() - below.log())
    return total / len(logits)


def main():
    torch.manual_seed(5)
    B, D, extra = 6, 16, 3
    x, y = normalize(torch.randn(B, D), dim=1), normalize(torch.randn(B, D), dim=1)
    more = torch.cat([y, normalize(torch.randn(extra, D), dim=1)])
    tx, ty = normalize(torch.randn(B, 24), dim=1), normalize(torch.randn(B, 24), dim=1)
    fx, fy = normalize(torch.randn(B, D), dim=1), normalize(torch.randn(B, D), dim=1)
    scale, bias = torch.tensor(7.5), torch.tensor(-3.25)
    image_groups, text_groups = torch.tensor([1, 2, 1, 3, 4, 4]), torch.tensor([1, 2, 1, 3, 9, 4, 2, 7, 4])
    positives = (image_groups[:, None] == text_groups[None]).float()
    eye = torch.eye(B)
    out = {"images": x, "texts": y, "more_texts": more, "teacher_images": tx, "teacher_texts": ty,
           "near_images": fx, "near_texts": fy, "scale": scale, "bias": bias,
           "image_groups": image_groups, "text_groups": text_groups}

    clip, siglip = reference.ClipLoss(), reference.SigLipLoss()
    distil = reference.DistillClipLoss()
    logits = lambda x, y, s, b: s * x @ y.T + b
    bce = lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none").sum(1).mean()

    def kl(student, teacher):
        one = lambda s, t: F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean")
        return (one(student, teacher) + one(student.T, teacher.T)) / 2

    def matryoshka(x, y, s, b):
        cut = lambda t, d: t if d == D else normalize(t[:, :d], dim=1)
        return sum(w * siglip(cut(x, d), cut(y, d), s, b) for d, w in [(4, 0.5), (10, 1.0), (16, 2.0)])

    teacher = 11.0 * tx @ ty.T
    cases = {
        "clip": (y, lambda x, y, s, b: clip(x, y, s)),
        "clip_smooth": (y, lambda x, y, s, b: symmetric(s * x @ y.T, eye, smoothing=0.1)),
        "clip_groups": (more, lambda x, y, s, b: symmetric(logits(x, y, s, b), positives)),
        "clip_groups_smooth": (more, lambda x, y, s, b: symmetric(logits(x, y, s, b), positives, smoothing=0.2)),
        "clip_negatives": (more, lambda x, y, s, b: (F.cross_entropy(s * x @ y.T, torch.arange(B)) + F.cross_entropy(s * y[:B] @ x.T, torch.arange(B))) / 2),
        "siglip": (y, siglip),
        "siglip_groups": (more, lambda x, y, s, b: bce(logits(x, y, s, b), positives)),
        "siglip_smooth": (y, lambda x, y, s, b: bce(logits(x, y, s, b), eye * 0.9 + 0.05)),
        "hard": (y, lambda x, y, s, b: (hard(s * x @ y.T, eye, 0.3, 1.0) + hard((s * x @ y.T).T, eye, 0.3, 1.0)) / 2),
        "hard_alpha": (y, lambda x, y, s, b: (hard(s * x @ y.T, eye, 0.7, 0.6) + hard((s * x @ y.T).T, eye, 0.7, 0.6)) / 2),
        "distill_logits": (y, lambda x, y, s, b: kl(s * x @ y.T, teacher)),
        "distill_all": (y, lambda x, y, s, b: clip(x, y, s) + 0.5 * kl(s * x @ y.T, 11.0 * fx @ fy.T) + 3.0 * (((x - fx) ** 2).sum(1).mean() + ((y - fy) ** 2).sum(1).mean())),
        "matryoshka": (y, matryoshka),
    }
    for name, (texts, loss) in cases.items():
        leaves = [t.clone().requires_grad_() for t in (x, texts, scale, bias)]
        value = loss(*leaves)
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        out[f"{name}.loss"] = value.detach()
        for key, leaf, grad in zip(["images", "texts", "scale", "bias"], leaves, grads):
            out[f"{name}.{key}"] = torch.zeros_like(leaf.detach()) if grad is None else grad

    # open_clip writes the teacher's term as a cross-entropy: the same gradients.
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    z = lambda x: 7.5 * x @ y.T
    theirs = (distil.dist_loss(teacher, z(a)) + distil.dist_loss(teacher.T, z(a).T)) / 2
    ga, gb = torch.autograd.grad(theirs, a)[0], torch.autograd.grad(kl(z(b), teacher), b)[0]
    assert torch.allclose(ga, gb, atol=1e-6), (ga - gb).abs().max()

    OUT.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in out.items()}, OUT / "golden.safetensors")


if __name__ == "__main__":
    main()
