import dataclasses
import json
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from scoring.clip.checkpoints import deciding_identity, resolve_checkpoint
from scoring.clip.folding import fold_norms
from scoring.clip.loading import load_model
from scoring.clip.scorer import ClipScorer
from scoring.config import ScoreConfig


class Residual(nn.Module):
    """Takes the convolution's output past the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return cast(Tensor, x + self.norm(x))


class Repeated(nn.Module):
    """Has one norm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.second(self.norm(self.first(x)))))


class Undecided(nn.Module):
    """Goes another way for every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x)) if x.mean() > 0 else x


class Doubling(nn.BatchNorm2d):
    """Computes something else than its kind."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def with_learned_norms(tower: nn.Module) -> nn.Module:
    """Returns a tower in evaluation whose norms do something."""
    torch.manual_seed(0)
    for norm in tower.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
            ):
                assert values is not None
                nn.init.uniform_(values, low, high)
    return tower.eval()


def count_norms(tower: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in tower.modules())


@torch.inference_mode()
def check(tower: nn.Module, folded: int) -> None:
    """Checks how many norms are folded, and that the output is as before."""
    tower = with_learned_norms(tower)
    pixels, norms = torch.randn(2, 3, 32, 32), count_norms(tower)
    before = tower(pixels)
    assert fold_norms(tower) == folded
    assert count_norms(tower) == norms - folded
    torch.testing.assert_close(tower(pixels), before, rtol=1e-4, atol=1e-5)
    assert not any(values.requires_grad for values in tower.parameters() if folded)


def test_all_norms_of_a_resnet_become_part_of_its_convolutions() -> None:
    tower = ModifiedResNet((1, 1, 1, 1), output_dim=16, heads=4, image_size=32, width=8)
    check(tower.requires_grad_(False), folded=3 + 4 * 4)


def test_a_norm_with_its_activation_leaves_the_activation_where_it_was() -> None:
    tower = nn.Sequential(
        Conv2dSame(3, 8, 3, stride=2, bias=False),
        BatchNormAct2d(8, act_layer=nn.ReLU6),
        nn.Conv2d(8, 8, 3, groups=8),
        BatchNormAct2d(8, apply_act=False),
    )
    check(tower.requires_grad_(False), folded=2)


@pytest.mark.parametrize(
    "tower",
    [
        Residual(),
        Repeated(),
        Undecided(),
        nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    ],
    ids=lambda tower: type(tower).__name__,
)
def test_what_is_not_a_convolution_and_its_own_norm_stays(tower: nn.Module) -> None:
    check(tower, folded=0)


def test_a_norm_in_training_stays() -> None:
    tower = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert fold_norms(tower) == 0
    assert count_norms(tower) == 1


@pytest.fixture(scope="module")
def resnet_clip(tmp_path_factory: pytest.TempPathFactory) -> ScoreConfig:
    """Returns how to score with a CLIP whose image tower is a ResNet."""
    root = tmp_path_factory.mktemp("resnet_clip")
    architecture: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    (root / "tiny_resnet.json").write_text(json.dumps(architecture))
    model = with_learned_norms(open_clip.CLIP(**architecture))
    torch.save(model.state_dict(), root / "tiny_resnet.pt")
    return ScoreConfig(
        model=str(root / "tiny_resnet.json"),
        pretrained=str(root / "tiny_resnet.pt"),
        precision="fp32",
        device="cpu",
        threads=1,
    )


def test_scores_in_fp32_are_those_of_the_model_with_its_norms(resnet_clip: ScoreConfig) -> None:
    scorer = ClipScorer(resnet_clip)
    assert scorer.identity["folded_norms"] == "19"
    assert "folded_norms" not in deciding_identity(scorer.identity)
    images = [np.full((32, 32, 3), shade, np.uint8) for shade in (10, 90, 200)]
    found = scorer.encode_images(images)
    model: Any
    model, _ = load_model(resolve_checkpoint(resnet_clip), resnet_clip, torch.device("cpu"))
    pixels = scorer.preprocessor.normalize(torch.from_numpy(np.stack(images)))
    expected = F.normalize(model.encode_image(pixels), dim=-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_in_bf16_norms_stay_for_their_weights_would_be_rounded_anew(
    resnet_clip: ScoreConfig,
) -> None:
    scorer = ClipScorer(dataclasses.replace(resnet_clip, precision="bf16"))
    assert scorer.identity["folded_norms"] == "0"
    assert count_norms(scorer.model) == 19
