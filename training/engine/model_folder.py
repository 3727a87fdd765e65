"""Model folders as transformers reads them, written from any ZeRO stage."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from schemas.disk import written_whole
from schemas.errors import StorageError
from training.engine.watch import undisturbed
from training.model.lora import has_lora, merge_lora


def save_model_folder(model: Any, processor: Any, folder: Path) -> None:
    """Writes model and processor to `folder`, whole or not at all; all processes call it together.

    Args:
        model: an AlignGPT model, its weights split over the processes or not. Adapters of LoRA
            are merged: what is written is a plain model.

    Raises:
        StorageError: in all processes, if the disk takes no more; nothing is left half written.
    """
    weights = gathered_weights(model)
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        if has_lora(model):
            weights = merge_lora(model, weights)
        try:
            with undisturbed(), written_whole(folder) as aside:
                model.save_pretrained(aside, state_dict=weights)
                processor.save_pretrained(aside)
        except StorageError as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise StorageError(failure[0])


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns all weights and buffers on the CPU; empty but on the first process.

    Weights that are one in the model stay one.
    """
    import deepspeed

    is_first = dist.get_rank() == 0
    copies: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) not in copies:
                is_split = hasattr(parameter, "ds_id")
                with deepspeed.zero.GatheredParameters([parameter], enabled=is_split):
                    kept = parameter.detach().cpu().clone() if is_first else torch.empty(0)
                copies[id(parameter)] = kept
            if is_first:
                weights[name] = copies[id(parameter)]
    if not is_first:
        return {}
    saved = model.state_dict().keys()
    buffers = {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}
    return weights | {name: buffer for name, buffer in buffers.items() if name in saved}
