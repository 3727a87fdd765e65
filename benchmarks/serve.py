"""What batching brings a server: 1, 4 and 16 clients, answered together and one at a time.

    python benchmarks/serve.py --quick                 # a tiny random model
    python benchmarks/serve.py --model runs/stage2/model --clients 1 4 16
    python benchmarks/serve.py --model runs/stage2/model --save   # benchmarks/results/serve.json

Each client asks again and again about a picture, and all ask the same number of questions in all.
Both servers run in this process, one after the other, with the same model and the same questions,
whose answers are drawn by their own seeds and so are the same. On a machine that does other things,
too, compare the processor's seconds: the clients' are among them.
"""

import argparse
import base64
import io
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from training.parts import Assembled, load_to_answer
from training.serve.commands import Limits, Serve
from training.serve.run import Server, listen

NAME = "model"
BATCH = 16


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; by default a tiny random one")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--questions", type=int, default=32, help="in all, for each row")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--quick", action="store_true")
    add_save_option(parser, "serve")
    arguments = parser.parse_args()
    questions = 16 if arguments.quick else arguments.questions
    parts = load_to_answer(arguments.model) if arguments.model else tiny()
    columns = (
        *("clients", "answered", "answers/s", "tokens/s"),
        *("median, s", "slowest, s", "core seconds an answer"),
    )
    rows = []
    for batch_size in (1, BATCH):
        with serving(parts, batch_size) as address:
            ask(address, 0, arguments.tokens)
            for clients in arguments.clients:
                row = measure(address, clients, questions, arguments.tokens)
                name = "one at a time" if batch_size == 1 else f"in batches of {batch_size}"
                rows.append([str(clients), name, *row])
                print(", ".join(rows[-1]), flush=True)
    sizes = {"questions": questions, "tokens": arguments.tokens}
    show_table(Table(columns, rows), arguments.save, **sizes)


@contextmanager
def serving(parts: Assembled, batch_size: int) -> Iterator[str]:
    """Serves a model in a thread for the length of a block, and gives its address."""
    command = Serve(
        model=".",
        name=NAME,
        port=0,
        page=False,
        batch_size=batch_size,
        waiting=1000,
        limits=Limits(answers=1, answer_seconds=3600),
    )
    listening: socket.socket = listen(command)
    server = Server(parts, command)
    thread = threading.Thread(target=server.run, args=(listening,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.stop()
        thread.join()
        listening.close()


def measure(address: str, clients: int, questions: int, tokens: int) -> list[str]:
    """Returns answers and tokens a second, median and longest wait, processor time an answer."""
    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda number: ask(address, number, tokens), range(questions)))
    seconds = time.perf_counter() - started
    used = (time.process_time() - used) / len(found)
    said = sum(count for count, _ in found)
    waits = [wait for _, wait in found]
    rates = (len(found) / seconds, said / seconds, statistics.median(waits), max(waits), used)
    return [f"{value:.2f}" for value in rates]


def ask(address: str, number: int, tokens: int) -> tuple[int, float]:
    """Returns the tokens of an answer, and the seconds until it was there."""
    started = time.perf_counter()
    picture = {"type": "image_url", "image_url": {"url": data_url(number)}}
    text = {"type": "text", "text": f"What is in picture {number}? Tell all that you see."}
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": [picture, text]}],
        "max_tokens": tokens,
        "temperature": 1,
        "seed": number,
    }
    reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=3600)
    reply.raise_for_status()
    return reply.json()["usage"]["completion_tokens"], time.perf_counter() - started


def data_url(number: int) -> str:
    """Returns a picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (224, 224), (number * 37 % 256, 90, 160)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def tiny() -> Assembled:
    """Returns a random model of 6 layers, for a look at the script."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

    from training.model.aligngpt import AlignGPTForConditionalGeneration
    from training.model.config import AlignGPTConfig
    from training.model.image_processor import AlignGPTImageProcessor
    from training.model.processor import AlignGPTProcessor

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*letters, "<end>"])}
    bare = Tokenizer(models.BPE(vocab=words, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<end>", pad_token="<end>", chat_template=template
    )
    processor = AlignGPTProcessor(
        AlignGPTImageProcessor(image_size=64), tokenizer, num_image_tokens=64
    )
    config = AlignGPTConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words), hidden_size=256, intermediate_size=688, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=4, eos_token_id=words["<end>"],
        ),
        image_token_id=processor.image_token_id,
        align_token_id=processor.placeholders.align_token_id,
    )  # fmt: skip
    return Assembled(model=AlignGPTForConditionalGeneration(config), processor=processor)


if __name__ == "__main__":
    main()
