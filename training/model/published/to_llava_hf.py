"""A model as transformers' `LlavaForConditionalGeneration`, which servers of others know.

Where the alignment vector is the same for every picture (modes global and average), it is one
more word: `<align>`, whose row of the embedding it is. The chat template writes that word where
the model was trained to have it. What the gate mixes for each question is no word, so a model of
the modes adaptive and local has no such form.

Source: transformers, `models/llava`; arXiv:2405.14129, section 3, for the modes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaImageProcessor
from transformers.models.llava.processing_llava import LlavaProcessor

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig, is_timm_tower
from training.model.inputs import ALIGN_TOKEN
from training.model.processor import AlignGPTProcessor

PROJECTORS = {"mlp2x_gelu": "gelu", "linear": "linear", "identity": "linear"}
"""Our projectors as theirs: two layers, and what stands between them."""
ALIKE = {torch.float32: 1e-3}
ROUNDED = 0.05
"""Of the logits' spread, by which theirs may differ from ours, in fp32 and in what rounds more."""


def check_exportable(config: AlignGPTConfig) -> None:
    """Raises `ConfigError`, which says all that has no place there, unless there is none."""
    faults = {
        f"alignment_mode {config.alignment_mode}, whose vector depends on picture and question": (
            config.has_gate
        ),
        "a timm tower": is_timm_tower(config.vision_config),
        f"the connector {config.projector_type}": config.projector_type not in PROJECTORS,
        "pictures of several scales": config.image_scales is not None,
        "<align> behind a first word that is no BOS": (
            config.align_after_first_token and config.leading_bos_token_id is None
        ),
    }
    if found := [fault for fault, is_there in faults.items() if is_there]:
        raise ConfigError(
            f"LLaVA of transformers has no place for {', '.join(found)}: use --to hf, which takes "
            "every model, or aligngpt-train serve"
        )


def save_llava_hf(
    model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, folder: Path
) -> None:
    """Writes the model as a llava-hf folder; `model` lends its parts and is of no use afterwards.

    Raises:
        ConfigError: if it has no such form, or would answer otherwise in it.
    """
    check_exportable(model.config)
    probe = _probe(model.config)
    with torch.no_grad():
        ours = model.eval()(**probe).logits.float()  # type: ignore[no-untyped-call]
        theirs_model = _llava(model)
        theirs = theirs_model(**probe).logits[..., : ours.shape[-1]].float()
    difference = float((ours - theirs).abs().max() / ours.std())
    if not difference < ALIKE.get(theirs_model.dtype, ROUNDED):
        raise ConfigError(
            f"LLaVA of transformers runs this language model otherwise (logits differ by "
            f"{difference:.3g} of their spread): use --to hf"
        )
    theirs_model.save_pretrained(folder)
    _llava_processor(processor, theirs_model.config).save_pretrained(folder)


def _probe(config: AlignGPTConfig) -> dict[str, Tensor]:
    """Returns a question that both are asked: a picture of noise and some words."""
    words = min(config.text_config.vocab_size, config.image_token_id) // 2
    ids = [config.image_token_id] * config.num_image_tokens + [words, words // 2, words // 3]
    if config.has_align_token:
        ids.insert(0, config.align_token_id)
    if config.leading_bos_token_id is not None:
        ids.insert(0, config.leading_bos_token_id)
    dtype = config.dtype or torch.float32
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, config.image_size, config.image_size, generator=generator)
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels.to(dtype)}


def _llava(model: AlignGPTForConditionalGeneration) -> Any:
    """Returns the model of the same parts, two words more in its embedding and head."""
    config, language = model.config, model.language_model
    embedding: Any = language.get_input_embeddings()
    head: Any = language.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if bias is not None and bool(bias.any()):
        raise ConfigError("the language model's head has a bias, and that of LLaVA has none")
    vocab = max(embedding.weight.shape[0], config.image_token_id + 1, config.align_token_id + 1)
    text_config = _copied(config.text_config, vocab_size=vocab, tie_word_embeddings=False)
    keeps_class = config.vision_feature_select == "cls_patch"
    is_clip = config.vision_config.model_type.startswith("clip")
    llava_config = LlavaConfig(
        vision_config=config.vision_config,
        text_config=text_config,
        image_token_index=config.image_token_id,
        image_seq_length=config.num_image_tokens,
        projector_hidden_act=PROJECTORS[config.projector_type],
        vision_feature_select_strategy="full" if keeps_class or not is_clip else "default",
        vision_feature_layer=config.vision_feature_layer,
        tie_word_embeddings=False,
        dtype=config.dtype,
    )
    with torch.device("meta"):
        made: Any = LlavaForConditionalGeneration(llava_config)
    inner: Any = language.base_model
    made.model.vision_tower, made.model.language_model = model.vision_tower.backbone, inner
    _fill_projector(made.model.multi_modal_projector, model)
    made.lm_head = nn.Linear(head.weight.shape[1], vocab, bias=False, dtype=head.weight.dtype)
    made.lm_head.weight.data = _longer(head.weight.data, vocab)
    embedding.weight = nn.Parameter(_longer(embedding.weight.data, vocab))
    embedding.num_embeddings = vocab
    if config.has_align_token:
        scale = float(getattr(embedding, "embed_scale", 1.0))
        vector = _constant_vector(model) * config.insertion_scale / scale
        embedding.weight.data[config.align_token_id] = vector.to(embedding.weight.dtype)
    inner.config = made.model.language_model.config = text_config
    made.generation_config = model.generation_config
    made.generation_config.suppress_tokens = [config.image_token_id, config.align_token_id]
    return made.eval()


def _constant_vector(model: AlignGPTForConditionalGeneration) -> Tensor:
    """Returns the alignment vector that every picture has, (D,)."""
    count, mode = model.config.num_levels, model.config.alignment_mode
    share = 1.0 / (count - 1) if mode == "average" else 0.0
    weights = torch.full((1, count - 1), share)
    return model.level_vectors.mix(weights)[0].float()


def _fill_projector(theirs: Any, model: AlignGPTForConditionalGeneration) -> None:
    """Gives their two layers what ours do, the scale of what is inserted included."""
    config, dtype = model.config, model.dtype
    width, vision = config.text_hidden_size, config.vision_hidden_size
    layers = {n: w for n, w in model.projector.named_parameters() if n.startswith("layers.")}
    found = sorted({name.rpartition(".")[0] for name in layers})
    one = torch.eye(width), torch.zeros(width)
    filled = [(layers[f"{n}.weight"].float(), layers[f"{n}.bias"].float()) for n in found]
    if not filled:
        filled = [(torch.eye(width, vision), torch.zeros(width))]
    filled += [one] * (2 - len(filled))
    scale = config.insertion_scale
    filled[-1] = (filled[-1][0] * scale, filled[-1][1] * scale)
    for layer, (weight, bias) in zip((theirs.linear_1, theirs.linear_2), filled, strict=True):
        layer.weight = nn.Parameter(weight.to(dtype))
        layer.bias = nn.Parameter(bias.to(dtype))


def _longer(weight: Tensor, rows: int) -> Tensor:
    """Returns a copy of (V, D) with rows of zeros up to a number."""
    return torch.cat([weight, weight.new_zeros(rows - weight.shape[0], weight.shape[1])])


def _copied(config: Any, **changes: Any) -> Any:
    fields = {**config.to_dict(), **changes}
    fields.pop("model_type", None)
    return type(config)(**fields)


def _llava_processor(processor: AlignGPTProcessor, config: LlavaConfig) -> LlavaProcessor:
    """Returns their processor with our pictures, words and turns."""
    ours = processor.image_processor
    images = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": ours.image_size},
        crop_size={"height": ours.image_size, "width": ours.image_size},
        image_mean=ours.image_mean,
        image_std=ours.image_std,
    )
    vision: Any = config.vision_config
    template: Any = processor.chat_template
    return LlavaProcessor(
        image_processor=images,
        tokenizer=processor.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(vision.model_type.startswith("clip")),
        chat_template=template
        and turns_template(
            template,
            has_align_token=processor.has_align_token,
            has_bos=processor.placeholders.bos_token_id is not None,
        ),
    )


def turns_template(template: str, *, has_align_token: bool, has_bos: bool) -> str:
    """Returns a chat template for turns made of parts, from one for turns of text.

    As in our processor, a picture stands before the words of its turn, several stay among them, and
    `<align>` comes first or behind BOS where there is a picture.

    Args:
        has_bos: whether texts begin with BOS; a BOS that marks turns is no such beginning.
    """
    leads = "bos_token and body.startswith(bos_token)" if has_bos else "false"
    mark = f"'{ALIGN_TOKEN}'" if has_align_token else "''"
    return (
        "{%- set all = namespace(turns=[], seen=false) -%}"
        "{%- for message in messages -%}"
        "{%- set turn = namespace(text='', images=0) -%}"
        "{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}"
        "{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        "{%- set turn.images = turn.images + 1 -%}{%- set all.seen = true -%}"
        "{%- endif -%}{%- endfor -%}"
        f"{{%- if turn.images == 1 -%}}{{%- set turn.text = '{IMAGE_TOKEN}\\n' -%}}{{%- endif -%}}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}"
        "{%- elif part['type'] == 'image' and turn.images > 1 -%}"
        f"{{%- set turn.text = turn.text + '{IMAGE_TOKEN}\\n' -%}}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{%- set all.turns = all.turns + [{'role': message['role'], 'content': turn.text}] -%}"
        "{%- endfor -%}{%- set messages = all.turns -%}"
        "{%- set body -%}" + template + "{%- endset -%}"
        f"{{%- set start = bos_token if {leads} else '' -%}}"
        f"{{{{- start + ({mark} if all.seen else '') + body[start | length:] -}}}}"
    )
