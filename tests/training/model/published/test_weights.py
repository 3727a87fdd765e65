import json

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    build_tokenizer,
    one_row,
    sample,
    text_config,
    vision_config,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.processor import AlignGPTProcessor
from training.model.published.weights import (
    load_published,
    our_name,
)

LEVELS, WIDTH, PATCHES = 8, 16, 16


def published_weights(prefix, is_aligngpt, has_tower):
    """Small tensors under the published names, for a Llama of 16 and a CLIP of 8 channels."""
    torch.manual_seed(0)
    language_model = transformers.LlamaForCausalLM(llama_config())
    weights = dict(language_model.state_dict())
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    parts = {
        "mm_projector.0.weight": (WIDTH, 8), "mm_projector.0.bias": (WIDTH,),
        "mm_projector.2.weight": (WIDTH, WIDTH), "mm_projector.2.bias": (WIDTH,),
    }  # fmt: skip
    if is_aligngpt:
        parts |= {
            "align_indicators.indicator_embs": (LEVELS, WIDTH),
            "gated_weight_layer.mlp.0.weight": (256, PATCHES),
            "gated_weight_layer.mlp.0.bias": (256,),
            "gated_weight_layer.mlp.2.weight": (LEVELS - 1, 256),
            "gated_weight_layer.mlp.2.bias": (LEVELS - 1,),
        }
    weights |= {prefix + name: torch.randn(shape) for name, shape in parts.items()}
    if has_tower:
        tower = transformers.CLIPVisionModel(vision_config()).state_dict()
        named = {
            name if name.startswith("vision_model.") else f"vision_model.{name}": w
            for name, w in tower.items()
        }
        weights |= {f"{prefix}vision_tower.vision_tower.{name}": w for name, w in named.items()}
        weights[f"{prefix}vision_tower.vision_tower.vision_model.embeddings.position_ids"] = (
            torch.arange(17)
        )
    return weights


def llama_config():
    return text_config(vocab_size=len(build_tokenizer(True)))


def write_folder(tmp_path, is_aligngpt, has_tower, is_pickled):
    tower = tmp_path / "tower"
    transformers.CLIPVisionModel(vision_config()).save_pretrained(tower)
    transformers.CLIPImageProcessor().save_pretrained(tower)
    folder = tmp_path / "published"
    folder.mkdir()
    prefix = "" if is_aligngpt else "model."
    weights = published_weights(prefix, is_aligngpt, has_tower)
    if is_pickled:
        names = sorted(weights)
        for part, chosen in enumerate((names[::2], names[1::2])):
            torch.save({n: weights[n] for n in chosen}, folder / f"pytorch_model-{part}-of-2.bin")
    else:
        save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors")
    settings = {
        **llama_config().to_dict(),
        "model_type": "aligngpt" if is_aligngpt else "llava_llama",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    build_tokenizer(True).save_pretrained(folder)
    return folder, weights


@pytest.mark.parametrize("is_aligngpt", [True, False])
@pytest.mark.parametrize(("has_tower", "is_pickled"), [(True, True), (False, False)])
def test_a_published_folder_becomes_a_model_with_its_weights(
    is_aligngpt, has_tower, is_pickled, tmp_path
):
    folder, weights = write_folder(tmp_path, is_aligngpt, has_tower, is_pickled)
    model, processor = load_published(folder)
    state = model.state_dict()
    for name, weight in weights.items():
        ours = our_name(name)
        assert ours is None or torch.equal(state[ours], weight)
    config = model.config
    assert config.alignment_mode == ("adaptive" if is_aligngpt else "none")
    assert (config.num_levels, config.gate_hidden_size) == (8, 256)
    inputs = processor(text="<image>\nwhat", images=picture())
    assert model.eval().generate(**inputs, max_new_tokens=3).shape[0] == 1


def picture():
    return Image.new("RGB", (9, 5), "red")


def test_a_published_model_computes_what_its_formulas_say(tmp_path):
    folder, weights = write_folder(tmp_path, True, True, False)
    model, processor = load_published(folder)
    inputs = processor(text="<image>\nwhat is", images=picture())
    ids = inputs["input_ids"][0]
    words = ids[2 + PATCHES :]
    tower = model.vision_tower.backbone(inputs["pixel_values"], output_hidden_states=True)
    features = tower.hidden_states[-2][0, 1:]
    features = torch.nn.functional.gelu(
        features @ weights["mm_projector.0.weight"].T + weights["mm_projector.0.bias"]
    )
    features = features @ weights["mm_projector.2.weight"].T + weights["mm_projector.2.bias"]
    table = weights["model.embed_tokens.weight"]
    text = table[words].mean(dim=0)
    hidden = weights["gated_weight_layer.mlp.0.weight"] @ (features @ text)
    hidden = torch.nn.functional.gelu(hidden + weights["gated_weight_layer.mlp.0.bias"])
    logits = weights["gated_weight_layer.mlp.2.weight"] @ hidden
    mix = (logits + weights["gated_weight_layer.mlp.2.bias"]).softmax(dim=0)
    levels = weights["align_indicators.indicator_embs"]
    vector = mix @ levels[:-1] + levels[-1]
    sequence = torch.cat([table[[1]], vector[None], features, table[words]])
    expected = model.language_model(inputs_embeds=sequence[None]).logits
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["what is <image>this", "<image>what is this"])
def test_without_bos_a_published_model_has_its_vector_second_and_reads_from_the_second_word(
    text, tmp_path
):
    folder, weights = write_folder(tmp_path, True, True, False)
    for path in folder.glob("*token*"):
        path.unlink()
    build_tokenizer(False).save_pretrained(folder)
    model, processor = load_published(folder)
    inputs = processor(text=text, images=picture())
    ids = inputs["input_ids"][0]
    assert ids[1] == model.config.align_token_id
    is_image = ids == model.config.image_token_id
    table = weights["model.embed_tokens.weight"]
    words = ids[(ids != model.config.align_token_id) & ~is_image]
    features = model.project(inputs["pixel_values"])
    mix = model.gate(features, table[words[1:]].mean(dim=0, keepdim=True))
    vector = model.level_vectors.mix(mix)[0]
    sequence = torch.zeros(len(ids), WIDTH)
    sequence[is_image] = features[0]
    sequence[~is_image & (ids != model.config.align_token_id)] = table[words]
    sequence[1] = vector
    expected = model.language_model(inputs_embeds=sequence[None]).logits
    for mask in ("prompt_mask", "attention_mask"):  # the model finds what it is not told
        torch.testing.assert_close(model.eval()(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        del inputs[mask]
    processor.save_pretrained(tmp_path / "ours")
    again = AlignGPTProcessor.from_pretrained(tmp_path / "ours")
    assert again.placeholders == processor.placeholders == model.config.placeholders
    assert again.placeholders.align_after_first_token


def test_missing_weights_are_named(tmp_path):
    folder, weights = write_folder(tmp_path, True, True, False)
    del weights["gated_weight_layer.mlp.2.bias"]
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"missing keys: gate\.mlp\.2\.bias"):
        load_published(folder)


def test_an_imported_model_is_one_of_ours(tmp_path):
    folder, _ = write_folder(tmp_path, True, True, False)
    model, _ = load_published(folder)
    model.save_pretrained(tmp_path / "ours")
    again = AlignGPTForConditionalGeneration.from_pretrained(tmp_path / "ours")
    inputs = one_row(sample(1, 6))
    inputs["input_ids"] = inputs["input_ids"].clamp(max=90)
    inputs["input_ids"][0, 1] = model.config.align_token_id
    inputs["input_ids"][0, 2 : 2 + PATCHES] = model.config.image_token_id
    inputs.pop("labels")
    assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)
