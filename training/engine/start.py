"""How training starts DeepSpeed's engine: the optimizer's groups, and what is done to the model."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from schemas.arithmetic import keep_kernels_apart
from training.config import Part, TrainConfig
from training.engine.deepspeed import deepspeed_config

GROUP_WEIGHTS = 500_000_000
"""Most weights of a group: ZeRO 1 and 2 step one at a time, with copies of all its gradients."""


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Returns AdamW's groups: of each part that learns, matrices apart from the rest."""
    optimizer = config.optimizer
    groups = []
    for part, module in model.named_children():
        rate = optimizer.part_learning_rates.get(cast(Part, part), optimizer.learning_rate)
        parameters = [p for p in module.parameters() if p.requires_grad]
        decays = [p for p in parameters if p.ndim > 1 and part != "level_vectors"]
        others = [p for p in parameters if p.ndim <= 1 or part == "level_vectors"]
        for members, decay in ((decays, optimizer.weight_decay), (others, 0.0)):
            for some in _of_limited_size(members):
                groups.append({"params": some, "lr": rate, "weight_decay": decay, "part": part})
    return groups


def _of_limited_size(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    size = GROUP_WEIGHTS
    for parameter in parameters:
        if size + parameter.numel() > GROUP_WEIGHTS:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups


def start_engine(config: TrainConfig, model: nn.Module) -> Any:
    """Returns DeepSpeed's engine around a model and a new optimizer for what learns of it."""
    import deepspeed

    if config.parallel.activation_checkpointing:
        checkpoint_activations(model)
    if config.parallel.compile_blocks:
        _compile_blocks(model)
    _align(model)
    model.train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config),
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.epsilon,
        fused=True,
    )
    if config.parallel.zero_stage == 0:
        _clip_before_step(optimizer, config.optimizer.max_gradient_norm)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, dist.get_world_size(), torch.cuda.is_available()),
    )
    return engine


def _align(model: nn.Module) -> None:
    """Moves learning weights that lie at an odd place, as in a file that is mapped to memory.

    DeepSpeed takes a group's only weight as it lies and asserts that it begins at a whole word.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _clip_before_step(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Clips the gradient and leaves its norm where the engine looks for it.

    Without ZeRO, DeepSpeed 0.19.8 clips and forgets the norm.
    """

    def clip(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm or torch.inf)
        optimizer._global_grad_norm = norm

    optimizer.register_step_pre_hook(clip)


def checkpoint_activations(model: Any) -> None:
    """Makes the language model compute activations twice, under either name transformers has."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _compile_blocks(model: Any) -> None:
    """Compiles each block of the language model in place: the names of its weights stay.

    All blocks are alike, so that one compilation serves all of them, and what a batch changes in
    its shapes stays outside: where images lie, how many there are.
    """
    keep_kernels_apart()
    language_model = model.language_model
    names = set(language_model._no_split_modules)
    for module in language_model.modules():
        if type(module).__name__ in names:
            module.compile()
