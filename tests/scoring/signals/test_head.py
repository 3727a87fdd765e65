import numpy as np
import pytest
from safetensors.numpy import save_file

from schemas.errors import ConfigError
from scoring.signals.head import load_head
from scoring.signals.pairs import ScoredPairs


def pairs(image: np.ndarray) -> ScoredPairs:
    keys = [str(row) for row in range(len(image))]
    return ScoredPairs(keys, keys, np.zeros(len(image), np.float32), image, image)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_layers_stand_in_the_order_of_their_numbers_with_what_the_metadata_says(tmp_path):
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Linear(5, 7), torch.nn.Linear(7, 3), torch.nn.Linear(3, 1)]
    tensors = {}
    for number, layer in zip((0, 2, 10), layers, strict=True):
        tensors[f"layers.{number}.weight"] = layer.weight.detach().numpy()
        tensors[f"layers.{number}.bias"] = layer.bias.detach().numpy()
    path = str(tmp_path / "head.safetensors")
    save_file(tensors, path, {"activation": "relu", "output": "sigmoid"})
    image = random(4, 5)
    wanted = torch.nn.Sequential(
        layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2], torch.nn.Sigmoid()
    )(torch.from_numpy(image))
    assert load_head(path).values(pairs(image)) == pytest.approx(wanted[:, 0].detach().numpy())
    save_file(tensors, path)
    wanted = torch.nn.Sequential(*layers)(torch.from_numpy(image))[:, 0].detach().numpy()
    assert load_head(path).values(pairs(image)) == pytest.approx(wanted, abs=1e-6)


def test_a_linear_head_of_half_precision_needs_no_bias(tmp_path):
    path = str(tmp_path / "linear.safetensors")
    weight = random(1, 5).astype(np.float16)
    save_file({"weight": weight}, path)
    image = random(4, 5)
    expected = image @ weight[0].astype(np.float32)
    assert load_head(path).values(pairs(image)) == pytest.approx(expected, abs=1e-6)


def test_what_is_no_head_says_so(tmp_path):
    with pytest.raises(ConfigError, match="there is no"):
        load_head(str(tmp_path / "none.safetensors"))
    path = tmp_path / "head.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        load_head(str(path))
    save_file({"0.weight": random(3, 5), "1.weight": random(1, 4)}, str(path))
    with pytest.raises(ConfigError, match="is no head"):
        load_head(str(path))
    save_file({"weight": random(1, 5)}, str(path), {"output": "softmax"})
    with pytest.raises(ConfigError, match="says 'softmax'"):
        load_head(str(path))
    save_file({"weight": random(1, 5)}, str(path))
    with pytest.raises(ConfigError, match="embeddings of 5 numbers, the scoring model's have 6"):
        load_head(str(path)).values(pairs(random(2, 6)))
