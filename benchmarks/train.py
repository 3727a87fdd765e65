"""Training: ours beside the usual way, on the same model, samples and machine, in one call.

    python benchmarks/train.py [--quick] [--model random|smollm2] [--rounds 3]
    python benchmarks/train.py --device cuda --shape 7b [--data DIR]     one large GPU

The usual way is the Trainer of transformers: rows of one sample each, padded to the longest of
the batch, in random order. Ours packs. Both learn the same weights with AdamW from the same
conversations, whose lengths spread as instruction data's do (log-normal, median 60 words, from 5
to 500; one in four about no picture). The two sides take turns, each in a process of its own; the
first steps of each are left out. The CUDA shape is written but was not run where this was written.
"""

import argparse
import dataclasses
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
CORPUS = ROOT / "examples" / "corpus"
LEFT_OUT = 2
"""First steps, in which caches fill."""


def main() -> None:
    """Runs the benchmark."""
    arguments = parsed_arguments()
    if arguments.side:
        run = run_ours if arguments.side == "ours" else run_usual
        print("RESULT " + json.dumps(run(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments, Path(folder))
        stages = (1, 2) if arguments.shape == "7b" else (2,)
        for stage in stages:
            compare(arguments, Path(folder), stage)


def parsed_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer steps")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=("small", "7b"), default="small")
    parser.add_argument("--model", choices=("random", "smollm2"), default="random")
    parser.add_argument("--data", help="dataset folder of conversations, already curated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", choices=("ours", "usual"), help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps = min(arguments.rounds, 2), min(arguments.steps, 8)
    return arguments


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes the samples and the model's parts."""
    run_quietly(
        sys.executable, ROOT / "examples" / "assemble_models.py", "--out", folder / "models",
        "--only", "smollm2", "vision_tower",
    )  # fmt: skip
    if arguments.data is None:
        write_conversations(folder / "turns.json", 240 if arguments.quick else 600)
        run_quietly(
            Path(sys.executable).parent / "aligngpt-curate", "curate",
            "--recipe", "llava_instructions", "--pairs", folder / "turns.json",
            "--out", folder / "data", "--read.image-folder", CORPUS,
        )  # fmt: skip
    if arguments.shape == "7b" or arguments.model == "random":
        write_random_model(arguments, folder)


def run_quietly(*command: Any) -> None:
    """Runs a command; where it fails, shows what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def write_conversations(path: Path, count: int) -> None:
    """Writes LLaVA's JSON: questions about stamps, answers of widely different lengths."""
    rng = random.Random(0)
    lines = (CORPUS / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t")
    stamps = [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]
    words = " ".join(stamp["caption"] for stamp in stamps).split()
    samples = []
    for number in range(count):
        stamp = stamps[number % len(stamps)]
        length = min(500, max(5, round(rng.lognormvariate(math.log(60), 1.0))))
        answer = stamp["caption"] + " " + " ".join(rng.choices(words, k=length))
        has_image = number % 4 > 0
        question = ("<image>\n" if has_image else "") + "What can you tell me?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        sample: dict[str, Any] = {"id": str(number), "conversations": turns}
        if has_image:
            sample["image"] = stamp["file"]
        samples.append(sample)
    path.write_text(json.dumps(samples), encoding="utf-8")


def write_random_model(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes a language model (and for 7b a tower) with new weights, and the tokenizer."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "smollm2")
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    if arguments.shape == "small":
        width, layers = (128, 4) if arguments.quick else (256, 8)
        shape |= {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
        }
    torch.set_default_dtype(torch.bfloat16 if arguments.shape == "7b" else torch.float32)
    with torch.device(arguments.device):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    model.save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    if arguments.shape == "7b":
        tower = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=336, patch_size=14,
        )  # fmt: skip
        CLIPVisionModel(tower).save_pretrained(folder / "tower")
        size = {"height": 336, "width": 336}
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=size).save_pretrained(
            folder / "tower"
        )
    torch.set_default_dtype(torch.float32)


def train_config(arguments: argparse.Namespace) -> Any:
    """Returns our configuration; the usual way reads the model and the parts that learn from it."""
    from training.config import (
        DataConfig,
        ModelConfig,
        OptimizerConfig,
        ParallelConfig,
        TrainConfig,
    )

    folder: Path = arguments.folder
    is_large = arguments.shape == "7b"
    is_random = is_large or arguments.model == "random"
    tower = folder / "tower" if is_large else f"timm:local-dir:{folder}/models/vision_tower"
    stage_1 = ("projector", "level_vectors")
    return TrainConfig(
        model=ModelConfig(
            language_model=str(folder / ("llama" if is_random else "models/smollm2")),
            vision_tower=str(tower),
            alignment_mode="none" if arguments.stage == 1 else "adaptive",
        ),
        data=DataConfig(
            form="conversation",
            tokens_per_sequence=2048 if is_large else 768,
            sequences_per_step=8 if is_large else 2,
            sequences_per_device=4 if is_large else 2,
            validation_ratio=0.0,
            workers=8 if is_large else 0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        parallel=ParallelConfig(
            zero_stage=1 if is_large else 0,
            precision="bf16" if is_large else "fp32",
            activation_checkpointing=is_large,
        ),
        train_parts=stage_1[:1]
        if arguments.stage == 1
        else ("projector", "gate", "language_model"),
        epochs=20,
        max_steps=arguments.steps,
    )


def data_folder(arguments: argparse.Namespace) -> str:
    """Returns the dataset."""
    return arguments.data or str(arguments.folder / "data")


def run_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the rates of our trainer, from the lines that it logs."""
    from training.build import build
    from training.deepspeed_config import start_distributed
    from training.loss import batch_loss
    from training.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as out:
        config = train_config(arguments)
        start_distributed()
        data = (data_folder(arguments),)
        run = build(RunFolder(out=Path(out), config=config, data=data, init=None))
        with run:
            for step, batches in run.steps():
                run.set_learning_rate(step)
                for batch in batches:
                    loss = batch_loss(run.engine, batch, config.model.num_levels)
                    run.engine.backward(loss.total * run.loss_scale(step))
                    run.engine.step()
                    run.totals.add(batch, loss)
                run.finish_step(step)
        lines = [
            json.loads(line)
            for line in (Path(out) / "metrics.jsonl").read_text().split("\n")
            if line
        ]
    lines = lines[LEFT_OUT:]
    seconds = sum(line["speed/step_seconds"] for line in lines)

    def mean(name: str) -> float:
        return sum(line[name] * line["speed/step_seconds"] for line in lines) / seconds

    result = {
        "targets_per_second": mean("speed/target_tokens_per_second"),
        "wait_ratio": mean("speed/data_wait_ratio"),
        "padding_ratio": mean("speed/padding_ratio"),
    }
    if "speed/mfu_ratio" in lines[0]:
        result["mfu_ratio"] = mean("speed/mfu_ratio")
    return result


def run_usual(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the rates of the Trainer of transformers on padded rows of one sample each."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from training.data.dataset import TrainDataset
    from training.model.inputs import IGNORE_INDEX
    from training.parts import assemble

    torch.manual_seed(0)
    config = train_config(arguments)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="sdpa"))
    parts = assemble(config, None)
    dataset = TrainDataset([data_folder(arguments)])
    encoder = parts.encoder(config.data)
    rows = parts.rows(dataset, encoder)
    fits = [i for i in range(len(dataset)) if encoder.encode(dataset[i]) is not None]
    counts: list[dict[str, float]] = []

    class Samples(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(fits)

        def __getitem__(self, index: int) -> Any:
            started = time.perf_counter()
            sample = rows._encoded(fits[index])
            return sample, time.perf_counter() - started

    def padded(items: list[Any]) -> dict[str, Any]:
        started = time.perf_counter()
        tokens = [sample.tokens for sample, _ in items]
        width = max(len(sample.input_ids) for sample in tokens)

        def fill(name: str, filler: int) -> Any:
            values = [getattr(sample, name) for sample in tokens]
            return torch.tensor([list(v) + [filler] * (width - len(v)) for v in values])

        batch = {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORE_INDEX)}
        batch["prompt_mask"] = fill("prompt_mask", 0).bool()
        lengths = torch.tensor([len(sample.input_ids) for sample in tokens])
        batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
        images = [s.pixel_values for s, _ in items if s.pixel_values is not None]
        if images:
            batch["pixel_values"] = torch.stack(images)
        counts.append(
            {
                "targets": float((batch["labels"] != IGNORE_INDEX).sum()),
                "tokens": float(lengths.sum()),
                "padded": float(width * len(items)),
                "wait": sum(s for _, s in items) + time.perf_counter() - started,
            }
        )
        return batch

    class Clock(TrainerCallback):
        """Notes when each step ends."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    is_large = arguments.shape == "7b"
    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            output_dir=out, max_steps=arguments.steps, per_device_train_batch_size=16,
            learning_rate=1e-4, lr_scheduler_type="cosine", report_to=[], save_strategy="no",
            logging_strategy="no", use_cpu=arguments.device == "cpu", bf16=is_large,
            gradient_checkpointing=is_large, remove_unused_columns=False, disable_tqdm=True,
            dataloader_num_workers=0,
        )  # fmt: skip
        trainer = Trainer(
            model=parts.model, args=settings, train_dataset=Samples(), data_collator=padded,
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    # The Trainer fetches a batch ahead: the batches of steps LEFT_OUT.. are these.
    used = counts[LEFT_OUT : arguments.steps]
    seconds = clock.ends[-1] - clock.ends[LEFT_OUT - 1]
    return {
        "targets_per_second": sum(c["targets"] for c in used) / seconds,
        "wait_ratio": sum(c["wait"] for c in used) / seconds,
        "padding_ratio": 1 - sum(c["tokens"] for c in used) / sum(c["padded"] for c in used),
    }


def compare(arguments: argparse.Namespace, folder: Path, stage: int) -> None:
    """Lets the two sides take turns and prints what came out."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "usual": []}
    options = ["--folder", str(folder), "--stage", str(stage), "--steps", str(arguments.steps)]
    options += ["--device", arguments.device, "--shape", arguments.shape]
    options += ["--model", arguments.model] + (["--data", arguments.data] if arguments.data else [])
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    load = os.getloadavg()[0]
    for _ in range(arguments.rounds):
        for side, results in found.items():
            command = [sys.executable, __file__, "--side", side, *options]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            lines = [s for s in done.stdout.splitlines() if s.startswith("RESULT ")]
            if done.returncode or not lines:
                sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            results.append(json.loads(lines[-1].removeprefix("RESULT ")))
    print(
        f"stage {stage}, {arguments.device}, {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print(f"load when it started: {load:.1f} on {os.cpu_count()} cores")
    print(f"{'':8}{'target tokens/s':>17}{'waiting for data':>18}{'padding':>9}{'MFU':>8}")
    for side, results in found.items():
        middle = {k: statistics.median(r[k] for r in results) for k in results[0]}
        mfu = f"{middle['mfu_ratio']:.1%}" if "mfu_ratio" in middle else "-"
        print(
            f"{side:8}{middle['targets_per_second']:>17,.0f}{middle['wait_ratio']:>18.1%}"
            f"{middle['padding_ratio']:>9.1%}{mfu:>8}"
        )
    pairs = zip(found["ours"], found["usual"], strict=True)
    ratios = [ours["targets_per_second"] / usual["targets_per_second"] for ours, usual in pairs]
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ours : usual, target tokens/s: {statistics.median(ratios):.2f} (rounds: {shown})")


if __name__ == "__main__":
    main()
