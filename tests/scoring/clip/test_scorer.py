import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer

from schemas.errors import ConfigError
from scoring.clip.checkpoints import needs_quick_gelu
from scoring.clip.scorer import (
    ClipScorer,
    Scores,
    check_model,
    model_identity,
    shared_scorer,
)
from scoring.config import ScoreConfig

CAPTIONS = [
    "a red fire truck",
    "",
    "word " * 40,
    "猫の写真 🐈",
    "a cat on a mat",
    "tab\tand\x00control\x1b[31m",
    "un chat noir",
    "a",
    "the quick brown fox jumps over a dog",
    "<end_of_text> then more",
    "x",
]


def make_images(count: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        height, width = rng.integers(20, 90, 2)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        images.append(np.asarray(Image.fromarray(small).resize((int(width), int(height)))))
    return images


def reference(config: ScoreConfig) -> Scores:
    """Returns the scores by open_clip's own functions, one pair at a time."""
    open_clip.add_model_config(Path(config.model))
    name = Path(config.model).stem
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=config.pretrained)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    images, texts = [], []
    with torch.no_grad():
        for image, caption in zip(make_images(len(CAPTIONS)), CAPTIONS, strict=True):
            pixels = transform(Image.fromarray(image))[None]
            images.append(model.encode_image(pixels, normalize=True))
            texts.append(model.encode_text(tokenizer([caption]), normalize=True))
    image, text = torch.cat(images).numpy(), torch.cat(texts).numpy()
    none_cut, first = np.zeros(len(CAPTIONS), np.bool_), np.zeros(len(CAPTIONS), np.int64)
    return Scores((image * text).sum(-1), image, text, none_cut, first)


def test_scores_equal_open_clips_own_code(tiny_clip: Any) -> None:
    config = tiny_clip.score_config()
    scores = ClipScorer(config).score(make_images(len(CAPTIONS)), CAPTIONS)
    expected = reference(config)
    np.testing.assert_allclose(scores.clip_score, expected.clip_score, atol=2e-6)
    np.testing.assert_allclose(scores.image_embedding, expected.image_embedding, atol=2e-6)
    np.testing.assert_allclose(scores.text_embedding, expected.text_embedding, atol=2e-6)
    assert scores.clip_score.dtype == np.float32
    assert np.std(scores.clip_score) > 0.01


def test_rerun_gives_the_same_bytes_with_any_number_of_decode_threads(tiny_clip: Any) -> None:
    images = make_images(len(CAPTIONS))
    first = ClipScorer(tiny_clip.score_config()).score(images, CAPTIONS)
    again = ClipScorer(tiny_clip.score_config(decode_threads=5)).score(iter(images), CAPTIONS)
    assert first.clip_score.tobytes() == again.clip_score.tobytes()
    assert first.image_embedding.tobytes() == again.image_embedding.tobytes()
    assert first.text_embedding.tobytes() == again.text_embedding.tobytes()


def test_batch_mates_and_position_do_not_change_a_score(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    images = make_images(len(CAPTIONS))
    together = scorer.score(images, CAPTIONS).clip_score
    order = np.random.default_rng(1).permutation(len(CAPTIONS))
    permuted = scorer.score([images[i] for i in order], [CAPTIONS[i] for i in order]).clip_score
    alone = [scorer.score([i], [c]).clip_score[0] for i, c in zip(images, CAPTIONS, strict=True)]
    np.testing.assert_allclose(permuted, together[order], atol=2e-6)
    np.testing.assert_allclose(alone, together, atol=2e-6)


def test_captions_of_any_kind_are_scored_and_truncation_is_flagged(tiny_clip: Any) -> None:
    scorer = ClipScorer(tiny_clip.score_config())
    captions = [
        *CAPTIONS,
        "\ud800 lone surrogate",
        "ab" * 100_000,
        "a " * 14,
        "a " * 15,
        " " * 9999,
    ]
    scores = scorer.score(make_images(len(captions)), captions)
    assert np.isfinite(scores.clip_score).all()
    truncated = [captions[i] for i in np.flatnonzero(scores.is_truncated)]
    assert truncated == ["word " * 40, "ab" * 100_000, "a " * 15]


def test_prompt_template_is_what_the_text_tower_reads(tiny_clip: Any) -> None:
    plain = ClipScorer(tiny_clip.score_config())
    prompted = ClipScorer(tiny_clip.score_config(prompt_template="a photo of {caption}"))
    expected, _ = plain.encode_captions(["a photo of a dog"])
    found, _ = prompted.encode_captions(["a dog"])
    assert found.tobytes() == expected.tobytes()
    assert prompted.identity["prompt_template"] == "a photo of {caption}"


def test_local_folder_brings_its_own_preprocessing(tiny_clip: Any) -> None:
    config = tiny_clip.score_config(model=f"local-dir:{tiny_clip.folder}")
    scorer = ClipScorer(config)
    _, _, transform = open_clip.create_model_and_transforms(config.model)
    image = Image.fromarray(make_images(1)[0])
    pixels = torch.from_numpy(scorer.preprocessor.pixels(image).copy())[None]
    assert torch.equal(scorer.preprocessor.normalize(pixels)[0], transform(image))
    assert json.loads(scorer.identity["preprocessing"])["resize_mode"] == "squash"
    tower: Any = scorer.model.visual
    assert tower.preprocess_cfg["size"] == (32, 32)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near_fp32(tiny_clip: Any, precision: Any) -> None:
    images = make_images(len(CAPTIONS))
    exact = ClipScorer(tiny_clip.score_config()).score(images, CAPTIONS)
    near = ClipScorer(tiny_clip.score_config(precision=precision)).score(images, CAPTIONS)
    np.testing.assert_allclose(near.clip_score, exact.clip_score, atol=0.03)
    assert near.clip_score.tobytes() != exact.clip_score.tobytes()


def test_identity_names_the_weights_and_not_where_they_lie(tiny_clip: Any, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "tiny-clip.json").write_bytes(tiny_clip.config_file.read_bytes())
    (moved / "tiny-clip.pt").write_bytes(tiny_clip.weights.read_bytes())
    config = tiny_clip.score_config()
    elsewhere = tiny_clip.score_config(
        model=str(moved / "tiny-clip.json"), pretrained=str(moved / "tiny-clip.pt")
    )
    assert model_identity(config) == model_identity(elsewhere) == check_model(config)
    state = torch.load(tiny_clip.weights)
    state["logit_scale"] += 1
    torch.save(state, moved / "other.pt")
    other = model_identity(tiny_clip.score_config(pretrained=str(moved / "other.pt")))
    assert other["weights_sha256"] != model_identity(config)["weights_sha256"]


def test_wrong_names_give_an_error_that_lists_near_ones(tiny_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"near names are.*ViT-B-32"):
        check_model(ScoreConfig(model="ViT-B32", pretrained="openai"))
    with pytest.raises(ConfigError, match=r"near names are.*laion2b_s34b_b79k"):
        check_model(ScoreConfig(model="ViT-B-32", pretrained="laion2b"))
    with pytest.raises(ConfigError, match="no such folder"):
        check_model(ScoreConfig(model=f"local-dir:{tmp_path}/none"))
    with pytest.raises(ConfigError, match="holds no weights"):
        (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
        check_model(ScoreConfig(model=f"local-dir:{tmp_path}"))
    with pytest.raises(ConfigError, match="is not a file"):
        check_model(tiny_clip.score_config(model="none.json"))
    broken = tmp_path / "broken.pt"
    torch.save({"visual.proj": torch.zeros(2, 2)}, broken)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        check_model(tiny_clip.score_config(pretrained=str(broken)))


@pytest.mark.slow
def test_checking_a_model_leaves_nothing_of_it_behind(tiny_clip: Any) -> None:
    def modules() -> int:
        gc.collect()
        return sum(issubclass(type(found), torch.nn.Module) for found in gc.get_objects())

    before = modules()
    check_model(tiny_clip.score_config())
    assert modules() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_that_is_not_there_is_refused_before_work_starts(tiny_clip: Any) -> None:
    config = tiny_clip.score_config(device="cuda")
    with pytest.raises(ConfigError, match="set it to auto or cpu"):
        check_model(config)
    check_model(config, runs_here=False)


def test_checkpoint_gets_the_activation_it_was_trained_with() -> None:
    for model, tag in open_clip.list_pretrained():
        architecture = open_clip.get_model_config(model)
        settings = get_pretrained_cfg(model, tag)
        is_needed = needs_quick_gelu(architecture, settings)
        assert is_needed or (tag != "openai" and "quickgelu" not in model)
    assert needs_quick_gelu(
        open_clip.get_model_config("ViT-L-14"), get_pretrained_cfg("ViT-L-14", "openai")
    )


def test_model_is_loaded_once_in_a_process(tiny_clip: Any) -> None:
    config = tiny_clip.score_config()
    assert shared_scorer(config) is shared_scorer(tiny_clip.score_config())


def test_fewer_images_than_captions_are_an_error(tiny_clip: Any) -> None:
    with pytest.raises(ValueError, match="1 images for 2 captions"):
        ClipScorer(tiny_clip.score_config()).score(make_images(1), ["a", "b"])


def test_nothing_to_score_gives_empty_arrays(tiny_clip: Any) -> None:
    scores = ClipScorer(tiny_clip.score_config()).score([], [])
    assert scores.clip_score.shape == (0,) and scores.image_embedding.shape == (0, 24)


def make_bert_clip(folder: Path) -> Path:
    """Writes a local-dir model with a BERT text tower beside it, as the demonstration CLIP has."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(bert).save_pretrained(folder / "text_tower")
    text_cfg: dict[str, Any] = {
        "hf_model_name": "text_tower",
        "hf_tokenizer_name": "text_tower",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": 32,
    }
    architecture = {"embed_dim": 24, "vision_cfg": {**VISION}, "text_cfg": text_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    absolute = {**text_cfg, "hf_model_name": str(folder / "text_tower")}
    model = open_clip.CustomTextCLIP(**{**architecture, "text_cfg": absolute})
    for parameter in model.visual.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.save(model.state_dict(), folder / "open_clip_model.pth")
    return folder


VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_text_towers_of_transformers_are_scored_and_trimmed(tmp_path: Path, precision: Any) -> None:
    folder = make_bert_clip(tmp_path / "bert-clip")
    config = ScoreConfig(
        model=f"local-dir:{folder}", device="cpu", threads=1, batch_size=4, precision=precision
    )
    scorer = ClipScorer(config)
    captions = ["a cat", "", "abc " * 30, "x y z", "dog", "a " * 30, "a " * 31]
    found, is_truncated = scorer.encode_captions(captions)
    alone = np.concatenate([scorer.encode_captions([caption])[0] for caption in captions])
    tokenizer = open_clip.get_tokenizer(config.model)
    with torch.inference_mode():
        features = scorer.model.encode_text(tokenizer(captions)).float()
    whole = torch.nn.functional.normalize(features, dim=-1).numpy()
    tolerance = 2e-6 if precision == "fp32" else 0.02
    np.testing.assert_allclose(found, whole, atol=tolerance)
    np.testing.assert_allclose(found, alone, atol=tolerance)
    assert is_truncated.tolist() == [False, False, True, False, False, False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_and_cpu_agree(tiny_clip: Any) -> None:
    images = make_images(len(CAPTIONS))
    on_cpu = ClipScorer(tiny_clip.score_config()).score(images, CAPTIONS)
    on_gpu = ClipScorer(tiny_clip.score_config(device="cuda")).score(images, CAPTIONS)
    np.testing.assert_allclose(on_gpu.clip_score, on_cpu.clip_score, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_rerun_on_a_gpu_gives_the_same_bytes(tiny_clip: Any) -> None:
    images = make_images(len(CAPTIONS))
    config = tiny_clip.score_config(device="cuda")
    first = ClipScorer(config).score(images, CAPTIONS)
    assert (
        first.clip_score.tobytes()
        == ClipScorer(config).score(images, CAPTIONS).clip_score.tobytes()
    )
