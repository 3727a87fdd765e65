"""Which of several captions belongs to a picture, by how likely a model finds each of them."""

import copy
import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import DataConfig, SampleForm
from training.data.dataset import RawSample, TrainDataset, open_images
from training.model.inputs import IGNORE_INDEX, SampleTokens
from training.parts import IMAGE_MODES, Assembled, pixel_values

QUESTION = "What is in this picture?"
CANDIDATES = 20
LONGEST_CAPTION = 16
"""In tokens; longer ones are no candidates, as they would cost most of the time."""
ROWS = 100
"""Captions that are read at once."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """A group of pictures and their captions, each caption scored for each picture.

    Shapes: C candidates, which are the pictures of the group and their captions in one order.
    """

    log_likelihood: Tensor
    """(C, C) of caption j for picture i, summed over its tokens, in nats."""
    tokens: Tensor
    """(C,) of each caption."""
    gate_weights: Tensor | None
    """(C, N - 1) of each picture, where the model has a gate."""


def candidate_groups(dataset: TrainDataset, allowed: set[str], tokenizer: Any) -> list[list[int]]:
    """Returns held-out samples in groups of CANDIDATES, no caption twice; always the same."""
    seen: set[str] = set()
    chosen = []
    for index in dataset.by_key.tolist():
        sample = dataset[index]
        caption = sample.caption
        length = len(tokenizer(caption)["input_ids"])
        if sample.key not in allowed or length > LONGEST_CAPTION:
            continue
        if caption.lower().strip(". ") in seen:
            continue
        seen.add(caption.lower().strip(". "))
        chosen.append(index)
    random.Random(0).shuffle(chosen)
    whole = len(chosen) // CANDIDATES * CANDIDATES
    return [chosen[start : start + CANDIDATES] for start in range(0, whole, CANDIDATES)]


def as_asked(sample: RawSample, form: SampleForm) -> RawSample:
    """Returns the pair, for `conversation` as a question with its caption as the answer."""
    if form == "caption":
        return sample
    turns = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": sample.caption},
    ]
    return dataclasses.replace(sample, conversations=json.dumps(turns))


def score_groups(
    parts: Assembled,
    dataset: TrainDataset,
    groups: Sequence[Sequence[int]],
    form: SampleForm,
    level: int | None,
) -> list[GroupScores]:
    """Returns the scores of each group.

    Args:
        level: the alignment level that the model is told, for a model of stage 1 with levels.
    """
    results = []
    for group in groups:
        samples = [dataset[index] for index in group]
        tokens = [encoded(parts, sample, form) for sample in samples]
        pixels = torch.stack([pixels_of(parts, sample, form) for sample in samples])
        results.append(score_group(parts.model, tokens, pixels, level))
    return results


def encoded(parts: Assembled, sample: RawSample, form: SampleForm) -> SampleTokens:
    """Returns a pair's tokens, as training lays them out."""
    encoder = parts.encoder(DataConfig(form=form, tokens_per_sequence=512))
    tokens = encoder.encode(as_asked(sample, form))
    assert tokens is not None
    return tokens


def pixels_of(parts: Assembled, sample: RawSample, form: SampleForm) -> Tensor:
    """Returns a pair's picture, as training prepares it."""
    return pixel_values(parts.processor.image_processor, IMAGE_MODES[form], open_images(sample)[0])


@torch.inference_mode()
def score_group(
    model: Any, samples: list[SampleTokens], pixels: Tensor, level: int | None
) -> GroupScores:
    """Returns every caption's likelihood for every picture; what precedes it is read once each."""
    count = len(samples)
    start = samples[0].labels.index(next(x for x in samples[0].labels if x != IGNORE_INDEX))
    captions = [[x for x in sample.labels if x != IGNORE_INDEX] for sample in samples]
    before = model(
        input_ids=torch.tensor([sample.input_ids[:start] for sample in samples]),
        prompt_mask=torch.tensor([sample.prompt_mask[:start] for sample in samples]),
        pixel_values=pixels,
        alignment_level=None if level is None else torch.full((count,), level),
        use_cache=True,
        logits_to_keep=1,
        output_gate_weights=True,
    )
    width = max(len(caption) for caption in captions)
    said = torch.tensor([caption + [0] * (width - len(caption)) for caption in captions])
    lengths = torch.tensor([len(caption) for caption in captions])
    first = before.logits[:, -1].float().log_softmax(dim=-1)[:, said[:, 0]]  # (C, C)
    rest = torch.zeros(count, count)
    at_once = ROWS // count
    for pictures in torch.arange(count).split(at_once):
        cache = copy.deepcopy(before.past_key_values)
        cache.batch_select_indices(pictures.repeat_interleave(count))
        rest[pictures] = _rest(model, cache, said.repeat(len(pictures), 1), start).unflatten(
            0, (len(pictures), count)
        ).masked_fill(torch.arange(1, width) >= lengths[:, None], 0.0).sum(dim=-1)  # fmt: skip
    return GroupScores(first + rest, lengths, before.gate_weights)


def _rest(model: Any, cache: Any, said: Tensor, start: int) -> Tensor:
    """Returns the log-likelihood of each token but the first, (rows, width - 1)."""
    if said.shape[1] == 1:
        return torch.zeros(said.shape[0], 0)
    outputs = model.language_model(
        input_ids=said[:, :-1],
        past_key_values=cache,
        position_ids=torch.arange(start, start + said.shape[1] - 1).expand(said.shape[0], -1),
        use_cache=True,
    )
    logits = outputs.logits.float()
    own = logits.gather(-1, said[:, 1:, None]).squeeze(-1)
    found: Tensor = own - logits.logsumexp(dim=-1)
    return found


@torch.inference_mode()
def error_of_scores(
    parts: Assembled,
    dataset: TrainDataset,
    group: Sequence[int],
    form: SampleForm,
    level: int | None,
) -> float:
    """Returns how far scores are from those of one pass over picture and caption, at most.

    It looks at the first picture and every caption of the group.
    """
    (scores,) = score_groups(parts, dataset, [group], form, level)
    first = dataset[group[0]]
    worst = 0.0
    for place, index in enumerate(group):
        pair = dataclasses.replace(first, caption=dataset[index].caption)
        sample = encoded(parts, pair, form)
        model: Any = parts.model
        logits = model(
            input_ids=torch.tensor([sample.input_ids]),
            prompt_mask=torch.tensor([sample.prompt_mask]),
            pixel_values=pixels_of(parts, first, form)[None],
            alignment_level=None if level is None else torch.tensor([level]),
        ).logits[0, :-1]
        targets = torch.tensor(sample.labels[1:])
        loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
        worst = max(worst, abs(float(scores.log_likelihood[0, place] + loss)))
    return worst


def measured(groups: Sequence[GroupScores]) -> dict[str, list[float]]:
    """Returns, of each picture in turn, what the scores say of it.

    `nats_per_token` is the loss of its own caption. `gain_nats` is how much likelier that caption
    is for this picture than for the pictures of the group on average: what the picture tells. By
    the same difference captions are ranked for `is_first`, so that a caption that is likely for
    any picture has no advantage; `is_first_plain` ranks by likelihood per token alone.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("nats_per_token", "gain_nats", "is_first", "is_first_plain")
    }
    for group in groups:
        scores = group.log_likelihood.double()
        count = scores.shape[0]
        own = torch.arange(count)
        gains = scores - (scores.logsumexp(dim=0) - torch.tensor(float(count)).log())
        plain = scores / group.tokens
        found["nats_per_token"] += (-plain.diagonal()).tolist()
        found["gain_nats"] += gains.diagonal().tolist()
        found["is_first"] += (gains.argmax(dim=1) == own).double().tolist()
        found["is_first_plain"] += (plain.argmax(dim=1) == own).double().tolist()
    return found
