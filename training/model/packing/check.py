"""Whether a language model keeps packed samples apart, checked before a run relies on it.

Packed samples must not see each other. transformers makes a block-diagonal mask where positions
restart, but only for models that make their masks its way: others (OPT, Bloom, Falcon, GPT-OSS),
and layers that carry a state along the sequence (convolutions, linear attention), go on from one
sample into the next without a word.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.errors import ConfigError

FAULTS = (RuntimeError, ImportError, ValueError, TypeError, AttributeError, KeyError, IndexError)
"""What a model raises that does not take positions, or cannot be built so small."""
LENGTHS = (7, 6, 5)
"""Tokens of the samples that are packed: few, but more than a convolution's kernel."""
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit: fp32 gives 1e-6, the smallest leak seen
(RecurrentGemma of transformers 5.23) 7e-3."""
FREE_SIZES = {
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
}
"""What a config may say of sizes that do not decide who sees whom, and how much of it is enough."""


def packing_fault(config: Any) -> str | None:
    """Returns how packed samples differ from samples alone; None where they do not.

    Args:
        config: of a causal language model of transformers; one layer of each of its kinds is made,
            with random weights, on the CPU.

    Raises:
        ConfigError: if the model cannot be run as training runs it.
    """
    layers = one_of_each_kind(config)
    try:
        difference = _difference(_with_small_parts(layers))
    except FAULTS:  # some sizes belong together in some models
        try:
            difference = _difference(layers)
        except FAULTS as error:
            raise ConfigError(
                f"a language model of type {config.model_type} cannot be trained here: it must "
                "take inputs_embeds and position_ids and have past_key_values, but "
                f"{type(error).__name__}: {error}. Take another model.language_model"
            ) from error
    return None if difference <= TOLERANCE else f"its logits differ by {difference:.1%}"


def _difference(config: Any) -> float:
    """Returns the largest difference of logits, as a share of the largest logit."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        make_audible(model)
        embeddings = torch.randn(1, sum(LENGTHS), model.get_input_embeddings().embedding_dim)
        packed = _logits(model, embeddings, torch.cat([torch.arange(n) for n in LENGTHS]))
        alone = [
            _logits(model, sample, torch.arange(sample.shape[1]))
            for sample in embeddings.split(LENGTHS, dim=1)
        ]
    expected = torch.cat(alone, dim=1)
    return float((packed - expected).abs().max() / expected.abs().max())


def _logits(model: Any, embeddings: Tensor, positions: Tensor) -> Tensor:
    """Returns the logits, of a call with all that `AlignGPTForConditionalGeneration` passes."""
    outputs = model(
        inputs_embeds=embeddings,
        attention_mask=None,
        position_ids=positions[None],
        past_key_values=None,
        use_cache=False,
        logits_to_keep=0,
    )
    _ = outputs.past_key_values  # what the model reads, though there is no cache here
    logits: Tensor = outputs.logits
    return logits


def _with_small_parts(config: Any) -> Any:
    """Returns the config with small feed-forward parts."""
    small = copy.deepcopy(config)
    fewest = int(getattr(config, "num_experts_per_tok", None) or 1)
    for name, most in FREE_SIZES.items():
        size = getattr(small, name, 0)
        most = max(most, fewest) if name.endswith("experts") else most
        if size is None or (isinstance(size, int) and size > most):  # None: of the hidden size
            setattr(small, name, most)
    return small


def make_audible(model: torch.nn.Module) -> None:
    """Makes a model's new weights so large that every part of a layer shows in its results."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=(weight[0].numel()) ** -0.5)


def one_of_each_kind(config: Any) -> Any:
    """Returns the config of one layer of each of `layer_types`, with few words.

    Other lists that have an entry for each layer keep those of the chosen layers.
    """
    small = copy.deepcopy(config)
    small._attn_implementation = None
    depth = config.num_hidden_layers
    kinds = list(getattr(config, "layer_types", None) or ["any"])
    chosen = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(small, name, [value[layer] for layer in chosen])
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = len(chosen), 64, None
    return small
