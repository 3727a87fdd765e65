"""Trains under ZeRO-3 on two processes, one with images and one without; run by a test."""

import sys

import deepspeed
import torch
import torch.distributed as dist

from tests.training.model.tiny_models import build_model, packed_row, sample
from training.config import STAGE_1, STAGE_2
from training.engine.deepspeed import start_distributed
from training.model.trainable import set_trainable

SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
    },
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
}


def batch(stage, step, rank):
    """Packed rows in which images stand on one process, on both, and on none."""
    turn = (rank + step) % 2
    items = [sample(1, 9)] if turn else [sample(2, 6, num_images=0)]
    if step == 2:
        items = (
            [sample(3, 5, num_images=1 + (stage == 2)), sample(4, 5)] if rank else [sample(5, 5)]
        )
    if step == 3:
        items = [sample(6 + rank, 5, num_images=0)]
    inputs = packed_row(items)
    if stage == 1:
        count = sum(len(item["pixel_values"]) > 0 for item in items)
        inputs["alignment_level"] = torch.full((count,), 2, dtype=torch.long)
    return inputs


def main() -> None:
    start_distributed()
    rank = dist.get_rank()
    for stage in (1, 2):
        model = build_model()
        set_trainable(model, STAGE_1 if stage == 1 else STAGE_2)
        with torch.no_grad():
            expected = model.train()(**batch(stage, 0, rank)).loss
        trained = [p for p in model.parameters() if p.requires_grad]
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=SETTINGS)
        for step in range(4):
            loss = engine(**batch(stage, step, rank)).loss
            if step == 0:
                torch.testing.assert_close(loss.detach(), expected)
            engine.backward(loss)
            engine.step()
        engine.eval()
        with torch.no_grad():
            inputs = batch(stage, 1, rank)
            del inputs["labels"]
            assert engine(**inputs).logits.isfinite().all()
    sys.stdout.write(f"rank {rank} is done\n")


if __name__ == "__main__":
    main()
