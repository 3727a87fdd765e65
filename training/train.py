"""The training loop, for both stages. Read this first.

`build` (training/run/build.py) puts a run together: model, plan, batches, DeepSpeed's engine, and
where an earlier run stopped. Then every step is forward, backward, step; validating, saving and
logging are one call each. All processes run the same collectives at every step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from training.config import TrainConfig
from training.data.loader import PlannedStep
from training.engine.deepspeed import start_distributed, torchs_own_linear_after
from training.engine.meeting import joined
from training.loss import batch_loss
from training.run.build import build
from training.run.folder import RunFolder
from training.run.precision import with_settled_precision
from training.run.run import Run


def train(config: TrainConfig, data: Sequence[str], out: str, init: str | None = None) -> bool:
    """Returns whether the run is complete: False if SIGTERM stopped it, a checkpoint saved.

    Args:
        data: dataset folders, curated or of instruction samples.
        out: the run's folder. Where it holds a run of the same configuration, that goes on.
        init: model folder to start from; None builds one from `config.model`.
    """
    folder = RunFolder(out=Path(out), config=config, data=tuple(data), init=init)
    with joined(folder.facts, config.parallel):
        if folder.is_finished():
            folder.check()
            return True
        folder.check_place()
        start_distributed()
        folder = with_settled_precision(folder)
        with folder.locked(), torchs_own_linear_after(), build(folder) as run:
            return through(run)


def through(run: Run) -> bool:
    """Returns whether a run is complete, once it is or was stopped."""
    if run.first_step == 0:
        run.validate(0)
    for _ in take_steps(run):
        if run.is_stopping:
            return False
    run.validate(run.plan.num_steps)
    run.look_at_levels()
    run.save_model()
    return True


def take_steps(run: Run) -> Iterator[PlannedStep]:
    """Takes the steps that are left, and yields each once it is done."""
    for step, batches in run.steps():
        run.set_learning_rate(step)
        for batch in batches:
            loss = batch_loss(run.engine, batch, run.config.model.num_levels)
            run.engine.backward(loss.total * run.loss_scale(step))
            run.engine.step()
            run.totals.add(batch, loss)
        run.finish_step(step)
        yield step
