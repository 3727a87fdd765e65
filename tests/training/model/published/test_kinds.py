"""Checkpoints of every kind: llava-hf, Gemma and Phi of the family, and what is none."""

import json
import math

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError
from tests.training.model.published.sentencepieces import sentencepiece_model, write_tokenizer
from tests.training.model.tiny_models import build_model, build_tokenizer, text_config
from tests.training.model.tiny_models import vision_config as tower_config
from training.cli import run
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor
from training.model.published.weights import load_published, save_published
from training.parts import load_folder

PATCHES = 16


def picture():
    return Image.new("RGB", (9, 5), "red")


def write_tower(folder):
    transformers.CLIPVisionModel(tower_config()).save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


def family_folder(tmp_path, kind, drops=()):
    """Writes a checkpoint of the family's code, its language model of a kind; and its weights."""
    torch.manual_seed(0)
    words = text_config(kind, vocab_size=len(build_tokenizer(True)))
    weights = dict(transformers.AutoModelForCausalLM.from_config(words).state_dict())
    width = words.hidden_size
    shapes = {
        "mm_projector.0.weight": (width, 8), "mm_projector.0.bias": (width,),
        "mm_projector.2.weight": (width, width), "mm_projector.2.bias": (width,),
        "align_indicators.indicator_embs": (8, width),
        "gated_weight_layer.mlp.0.weight": (256, PATCHES), "gated_weight_layer.mlp.0.bias": (256,),
        "gated_weight_layer.mlp.2.weight": (7, 256), "gated_weight_layer.mlp.2.bias": (7,),
    }  # fmt: skip
    weights |= {name: torch.randn(shape) for name, shape in shapes.items()}
    weights = {name: w for name, w in weights.items() if name not in drops}
    if words.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    folder = tmp_path / "published"
    folder.mkdir()
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors")
    settings = {
        **words.to_dict(),
        "model_type": f"aligngpt_{kind}",
        "mm_vision_tower": write_tower(tmp_path / "tower"),
        "mm_projector_type": "mlp2x_gelu",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    build_tokenizer(True).save_pretrained(folder)
    return folder, weights


def published_gemma_logits(model, weights, inputs):
    """The published formulas: the gate reads what is unscaled, the language model all scaled."""
    ids = inputs["input_ids"][0]
    words = ids[2 + PATCHES :]
    hidden = model.vision_tower.backbone(inputs["pixel_values"], output_hidden_states=True)
    features = hidden.hidden_states[-2][0, 1:]
    for layer in ("0", "2"):
        features = features @ weights[f"mm_projector.{layer}.weight"].T
        features = features + weights[f"mm_projector.{layer}.bias"]
        features = torch.nn.functional.gelu(features) if layer == "0" else features
    table = weights["model.embed_tokens.weight"]
    mixed = weights["gated_weight_layer.mlp.0.weight"] @ (features @ table[words].mean(dim=0))
    mixed = torch.nn.functional.gelu(mixed + weights["gated_weight_layer.mlp.0.bias"])
    mixed = weights["gated_weight_layer.mlp.2.weight"] @ mixed
    mix = (mixed + weights["gated_weight_layer.mlp.2.bias"]).softmax(dim=0)
    levels = weights["align_indicators.indicator_embs"]
    vector = mix @ levels[:-1] + levels[-1]
    sequence = torch.cat([table[[1]], vector[None], features, table[words]])
    scaled = sequence[None] * math.sqrt(sequence.shape[-1])
    return model.language_model(inputs_embeds=scaled).logits


def test_gemma_of_the_family_computes_what_the_published_code_does_and_goes_back(tmp_path):
    folder, weights = family_folder(tmp_path, "gemma")
    model, processor = load_published(folder)
    model.eval()
    inputs = processor(text="<image>\nwhat is", images=picture())
    expected = published_gemma_logits(model, weights, inputs)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    save_published(model, processor, tmp_path / "back", vision_tower=str(tmp_path / "tower"))
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in weights.items())


def test_a_new_gemma_is_exported_in_the_scale_of_the_published_code(tmp_path):
    tokenizer = build_tokenizer(True)
    words = text_config("gemma", vocab_size=len(tokenizer))
    placeholders = {"image_token_id": len(tokenizer), "align_token_id": len(tokenizer) + 1}
    model = build_model(text_config=words, **placeholders)
    images = AlignGPTImageProcessor(16)
    processor = AlignGPTProcessor(images, tokenizer, num_image_tokens=PATCHES)
    tower = write_tower(tmp_path / "tower")
    model.vision_tower.backbone.save_pretrained(tower)
    save_published(model, processor, tmp_path / "out", vision_tower=tower)
    loaded, _ = load_published(tmp_path / "out")
    inputs = processor(text="<image>\nwhat is", images=picture())
    assert loaded.config.insertion_scale == math.sqrt(16)
    torch.testing.assert_close(
        loaded.eval()(**inputs).logits, model(**inputs).logits, atol=1e-3, rtol=1e-3
    )


def test_phi_of_the_family_has_a_head_without_bias_both_ways(tmp_path):
    folder, weights = family_folder(tmp_path, "phi", drops=("lm_head.bias",))
    model, processor = load_published(folder)
    assert not model.language_model.lm_head.bias.any()
    tower = str(tmp_path / "tower")
    save_published(model, processor, tmp_path / "back", vision_tower=tower)
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert "lm_head.bias" not in written and weights.keys() <= written.keys()
    with torch.no_grad():
        model.language_model.lm_head.bias[3] = 1.0
    with pytest.raises(ConfigError, match="head of this Phi has a bias"):
        save_published(model, processor, tmp_path / "more", vision_tower=tower)
    assert not (tmp_path / "more").exists()


def llava_hf_folder(tmp_path, **settings):
    tokenizer = build_tokenizer(True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    config = transformers.LlavaConfig(
        vision_config=tower_config(),
        text_config=text_config(vocab_size=len(tokenizer) + 5),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **settings,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    folder = tmp_path / "llava"
    model.save_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("choice", ["default", "full"])
def test_a_llava_hf_folder_becomes_the_same_model(choice, tmp_path):
    folder, theirs = llava_hf_folder(tmp_path, vision_feature_select_strategy=choice)
    assert run(["import", str(folder), "--out", str(tmp_path / "ours")]) == 0
    parts = load_folder(str(tmp_path / "ours"), torch.float32)
    assert parts.model.config.alignment_mode == "none"
    assert parts.model.config.imported_from == str(folder)
    asked = [{"role": "user", "content": "<image>\nwhat is this"}]
    text = parts.processor.apply_chat_template(asked, add_generation_prompt=True)
    assert text.startswith("<s>A chat between")  # its own template writes no texts
    inputs = parts.processor(text=text, images=picture())
    expected = theirs(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"],
    ).logits
    found = parts.model.eval()(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_llava_hf_folder_that_is_made_otherwise_is_refused(tmp_path):
    folder, _ = llava_hf_folder(tmp_path, vision_feature_layer=[-2, -1])
    with pytest.raises(ConfigError, match=r"vision_feature_layer \[-2, -1\]: no model of ours"):
        load_published(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "is a language model"),
        ({"model_type": "bert"}, "a model of the kind bert; what can be imported"),
        ({"model_type": "aligngpt", "text_config": {}}, "is a model folder already"),
        ({"model_type": "llava_mpt", "mm_vision_tower": "x"}, "kind llava_mpt cannot be imported"),
        ({"model_type": "llava_llama", "mm_hidden_size": 4}, "names no mm_vision_tower"),
        ({"config": {}, "data": []}, "is a run"),
        ([1], "no settings by name"),
        (None, "there is no config.json"),
        ("{", "is no JSON"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_a_sentence(settings, message, tmp_path, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    if settings is not None:
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (folder / "config.json").write_text(text)
    assert run(["import", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_lora_matrices_and_a_missing_folder_are_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run(["import", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "LoRA matrices alone" in " ".join(capsys.readouterr().err.split())
    assert run(["import", "/no/such/folder", "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_export_has_the_vocabulary_of_the_language_model_and_keeps_legacy(tmp_path, caplog):
    folder, _ = family_folder(tmp_path, "llama")
    for path in folder.glob("*token*"):
        path.unlink()
    model = sentencepiece_model()
    write_tokenizer(folder, model, True)
    ours, out = str(tmp_path / "ours"), tmp_path / "out"
    assert run(["import", str(folder), "--out", ours]) == 0
    tower = ["--vision-tower", str(tmp_path / "tower")]
    assert run(["export", ours, "--out", str(out), *tower]) == 0
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["legacy"] is True and settings["tokenizer_class"] == "LlamaTokenizer"
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (True, False)
    assert "<image>" not in json.dumps(settings)
    words = transformers.LlamaConfig()
    base = transformers.AutoTokenizer.from_pretrained(folder, config=words, legacy=True)
    again = transformers.AutoTokenizer.from_pretrained(out, config=words)
    assert len(again) == len(base) and "<image>" not in again.get_vocab()
    assert again("what? </s>USER:")["input_ids"] == base("what? </s>USER:")["input_ids"]
    assert "N_IMAGE_TOKEN" in caplog.text and "token more" not in caplog.text
