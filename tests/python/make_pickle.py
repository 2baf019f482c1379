"""Writes the small files of torch.save that tests/weights/pickle.rs reads. Run from the repository's root."""

from collections import OrderedDict
from pathlib import Path

import torch

out = Path("tests/weights/pickle")
out.mkdir(parents=True, exist_ok=True)


def numbers(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


tied = numbers(2, 3)
state = OrderedDict(
    f32=numbers(2, 3) / 2,
    f16=numbers(3).half(),
    bf16=numbers(3).bfloat16(),
    f64=numbers(3).double(),
    i64=torch.tensor([3, -2, 7]),
    i32=torch.tensor([3, -2, 7], dtype=torch.int32),
    u8=torch.tensor([3, 2, 7], dtype=torch.uint8),
    bool=torch.tensor([True, False, True]),
    scalar=torch.tensor(9.0),
    empty=torch.zeros(0, 4),
    parameter=torch.nn.Parameter(numbers(2)),
    transposed=numbers(3, 2).t(),
    sliced=numbers(3, 4)[1:, 1:3],
    channels_last=numbers(1, 2, 2, 3).to(memory_format=torch.channels_last),
    tied_a=tied,
    tied_b=tied,
)
torch.save(state, out / "zip.bin")
torch.save(state, out / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save(state, out / "protocol_4.bin", pickle_protocol=4)

torch.manual_seed(0)
model = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 3)))
model.load_state_dict({"module.0.weight": numbers(3, 2), "module.0.bias": numbers(3)})
optimizer = torch.optim.AdamW(model.parameters())
model(numbers(1, 2)).sum().backward()
optimizer.step()
model.load_state_dict({"module.0.weight": numbers(3, 2), "module.0.bias": numbers(3)})
torch.save(
    {"epoch": 3, "name": "run", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "lr": 1e-3},
    out / "training.pt",
)
torch.jit.script(torch.nn.Linear(2, 2)).save(out / "script.pt")
