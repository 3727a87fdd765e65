import torch

from training.config import TrainConfig
from training.engine.start import parameter_groups


def test_a_group_of_weights_stays_below_what_zero_copies_at_once() -> None:
    linear = torch.nn.Linear(20_000, 20_000, bias=False, device="meta")
    model = torch.nn.ModuleDict({"language_model": torch.nn.Sequential(*[linear] * 3)})
    several = [torch.nn.Linear(20_000, 10_000, bias=False, device="meta") for _ in range(5)]
    model["projector"] = torch.nn.Sequential(*several)
    groups = parameter_groups(model, TrainConfig())
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes == [400_000_000, 400_000_000, 400_000_000, 200_000_000]
    learnt = [id(p) for group in groups for p in group["params"]]
    assert sorted(learnt) == sorted(id(p) for p in model.parameters())
