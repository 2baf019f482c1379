"""Checks that TensorBoard reads our event files, and reads in them what the JSON lines of the same run say.

    python tests/python/check_event_file.py RUN.jsonl TENSORBOARD_DIR

The two come from `finetune … --log RUN.jsonl --tensorboard TENSORBOARD_DIR`, one run in each. Needs the package tensorboard.
"""

import json
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("skipped: the package tensorboard is not installed")
    sys.exit(0)

if len(sys.argv) != 3:
    sys.exit(__doc__)
lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
events = EventAccumulator(sys.argv[2], size_guidance={"scalars": 0})
events.Reload()
assert events.file_version == 2.0, events.file_version


def check(tag, expected):
    found = [(event.step, event.value) for event in events.Scalars(tag)]
    assert [step for step, _ in found] == [step for step, _ in expected], (tag, found, expected)
    for (_, value), (_, wanted) in zip(found, expected):
        assert abs(value - wanted) <= 1e-2 + 1e-6 * abs(wanted) if "recall" in tag else abs(value - wanted) <= 1e-6 * max(1, abs(wanted)), (tag, value, wanted)


steps = [line for line in lines if line["event"] == "step"]
evaluations = [line for line in lines if line["event"] == "evaluation"]
for tag, key in [("loss", "loss"), ("learning_rate", "lr"), ("gradient_norm", "grad_norm"), ("logit_scale", "logit_scale")]:
    check(f"train/{tag}", [(line["step"], line[key]) for line in steps])
for direction in ["text_to_image", "image_to_text"]:
    for k in [1, 5, 10]:
        check(f"{direction}/recall_at_{k}", [(line["step"], line[direction][f"r{k}"]) for line in evaluations])
print(f"ok: {len(steps)} steps, {len(evaluations)} evaluations, tags {events.Tags()['scalars']}")
