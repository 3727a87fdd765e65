"""The published code's token ids and targets, its rules written out with SentencePiece itself."""

import json
import random
import re

import pytest
import transformers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from tests.training.model.published.sentencepieces import sentencepiece_model, write_tokenizer
from training.data.conversations import VICUNA_V1, tokenise
from training.data.dataset import RawSample
from training.model.pieces import tokens_of
from training.model.processor import AlignGPTProcessor, add_placeholders, set_default_template
from training.model.tokenizer_files import load_tokenizer

IMAGE, IGNORED = -200, -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class SlowLlama:
    """`LlamaTokenizer` of transformers 4, as far as the published code uses it."""

    def __init__(self, model: bytes, legacy: bool) -> None:
        self.legacy = legacy
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        proto.normalizer_spec.add_dummy_prefix = legacy
        self._pieces = SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._unknown = len(self._pieces.encode("<unk>"))

    def __call__(self, text: str) -> list[int]:
        """Returns BOS and the ids of a text."""
        if text and not self.legacy:
            text = "▁" + text.replace("▁", " ")
        ids: list[int] = []
        for part in re.split("(<s>|</s>|<unk>)", text):
            if part in ("<s>", "</s>", "<unk>"):
                if not self.legacy and [self._pieces.id_to_piece(i) for i in ids] == ["▁"]:
                    ids = []
                ids.append({"<unk>": 0, "<s>": 1, "</s>": 2}[part])
            elif part and not self.legacy and part.startswith(("▁", " ")):
                ids += self._pieces.encode("<unk>" + part)[self._unknown :]
            elif part:
                ids += self._pieces.encode(part)
        return [1, *ids]


def with_pictures(prompt: str, tokenizer: SlowLlama) -> list[int]:
    """`tokenizer_image_token`: each piece between pictures as a text, BOS once."""
    first, *others = (tokenizer(piece) for piece in prompt.split("<image>"))
    return first + [token for piece in others for token in (IMAGE, *piece[1:])]


def published_sample(turns: list[tuple[str, str]], tokenizer: SlowLlama):
    """`preprocess_multimodal` and `preprocess_v1`: ids and targets of a conversation."""
    has_image = any("<image>" in text for _, text in turns)
    prompt = SYSTEM + " "
    for who, text in turns:
        if "<image>" in text:
            text = ("<image>\n" + text.replace("<image>", "").strip()).strip()
        prompt += f"USER: {text} " if who == "human" else f"ASSISTANT: {text}</s>"
    count = (lambda text: with_pictures(text, tokenizer)) if has_image else tokenizer
    ids = count(prompt)
    targets, at = list(ids), 1
    targets[0] = IGNORED
    for number, one in enumerate(prompt.split("</s>")):
        if not one:
            break
        asked, said, *more = one.split(" ASSISTANT: ")
        assert not more and said is not None
        length, instruction = len(count(one)), len(count(asked + " ASSISTANT: ")) - 2
        if number and not tokenizer.legacy:
            length, instruction = length - 1, instruction - 1
        targets[at : at + instruction] = [IGNORED] * instruction
        at += length
    assert at == len(ids), "the published code would throw this sample away"
    return ids, targets


WORDS = [
    "red",
    "cat",
    "two",
    "dogs",
    "Straße",
    "猫",
    "🙂",
    "1234",
    "it's",
    "  ",
    "\n",
    "\t",
    "a_b",
    "▁",
]


def conversations(count: int) -> list[list[tuple[str, str]]]:
    """Conversations of one to three rounds, with and without a picture, in all manner of words."""
    chance = random.Random(3)
    made = []
    for number in range(count):
        turns = []
        for place in range(chance.randint(1, 3)):
            asked = "".join(
                chance.choice(WORDS) + chance.choice((" ", "", "\n"))
                for _ in range(chance.randint(1, 9))
            )
            if number % 3 and place == 0:
                asked = chance.choice((f"<image>\n{asked}", f"{asked}\n<image>", f"{asked}<image>"))
            said = " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 9)))
            turns += [("human", asked), ("gpt", chance.choice(("", "\n", " ")) + said + "x")]
        made.append(turns)
    return made


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model()


@pytest.fixture(scope="module", params=[True, False, None], ids=["legacy", "new", "unsaid"])
def both(request, model, tmp_path_factory):
    """An imported tokenizer and the one that it must equal; saved once and loaded again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder / "theirs", model, request.param)
    tokenizer = load_tokenizer(folder / "theirs", transformers.LlamaConfig())
    add_placeholders(tokenizer)
    set_default_template(tokenizer, VICUNA_V1)
    AlignGPTProcessor(
        transformers.CLIPImageProcessor(), tokenizer, tokenizes_by_piece=True
    ).save_pretrained(folder / "ours")
    again = transformers.AutoTokenizer.from_pretrained(folder / "ours")
    return again, SlowLlama(model, request.param is not False)


def test_200_conversations_have_the_published_ids_and_targets(both):
    tokenizer, slow = both
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    for turns in conversations(200):
        sample = RawSample(
            key="k",
            caption="",
            conversations=json.dumps([{"from": who, "value": text} for who, text in turns]),
            alignment_level=None,
            tar="",
            image_ranges=((0, 1),) * any("<image>" in text for _, text in turns),
        )
        words = tokenise(sample, "conversation", tokenizer, by_piece=True)
        ids = [IMAGE if token == image_id else token for token in words.token_ids]
        pairs = zip(ids, words.is_target, strict=True)
        targets = [token if is_target else IGNORED for token, is_target in pairs]
        assert (ids, targets) == published_sample(turns, slow), turns


def test_a_prompt_and_a_caption_have_the_published_ids(both):
    tokenizer, slow = both
    processor = AlignGPTProcessor(
        transformers.CLIPImageProcessor(), tokenizer, num_image_tokens=1, has_align_token=False,
        tokenizes_by_piece=True,
    )  # fmt: skip
    image_id = processor.image_token_id
    for text in ("<image>\nwhat is this?", " red", "what is <image> or  <image>?", "<image>"):
        prompt = f"{SYSTEM} USER: {text} ASSISTANT:"
        expected = [image_id if i == IMAGE else i for i in with_pictures(prompt, slow)]
        for start in ("", "<s>"):
            found = tokens_of(start + prompt, tokenizer, by_piece=True).token_ids
            assert found == expected
    turns = [{"role": "user", "content": "<image>\nwhat?"}]
    asked = processor.apply_chat_template(turns, add_generation_prompt=True)
    expected = with_pictures(f"{SYSTEM} USER: <image>\nwhat? ASSISTANT:", slow)
    found = processor._token_ids(asked, False)
    assert found == [image_id if i == IMAGE else i for i in expected]
    pair = RawSample(
        key="k", caption="a red cat", conversations=None, alignment_level=1, tar="",
        image_ranges=((0, 1),),
    )  # fmt: skip
    words = tokenise(pair, "caption", tokenizer, by_piece=True)
    expected = with_pictures("<image>a red cat\n", slow)
    assert words.token_ids == [image_id if i == IMAGE else i for i in expected]
    assert words.is_target == [False, False] + [True] * (len(expected) - 2)


def test_ids_tell_where_their_words_are(both):
    tokenizer, _ = both
    text = "<s>what is <image>  red? <image>\ncat</s>USER"
    found = tokens_of(text, tokenizer, by_piece=True)
    pairs = zip(found.token_ids, found.offsets, strict=True)
    spelt = [(tokenizer.convert_ids_to_tokens(i), text[a:b]) for i, (a, b) in pairs if b > a]
    for piece, words in spelt:
        if not piece.startswith("<0x") and piece != "▁":
            assert piece.replace("▁", "").strip() == words.strip()
    assert spelt[-1][1].endswith("R")
