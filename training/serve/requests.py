"""What a request for an answer may say, after OpenAI's chat completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.tokens import IMAGE_TOKEN
from training.model.inputs import ALIGN_TOKEN
from training.serve.commands import Limits
from training.serve.errors import ApiError

DEFAULT_NEW_TOKENS = 512
Role = Literal["system", "developer", "user", "assistant"]
Text = Annotated[str, StringConstraints(max_length=2**20)]


class Strict(BaseModel):
    """Takes what it names, of the types that it names, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Takes a field that is null as one that is not there.

        OpenAI's clients send such fields: an answer that is sent back as a turn has `refusal` null.
        """
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class ImageUrl(Strict):
    """Where a picture is."""

    url: str
    detail: str | None = None


class TextPart(Strict):
    """Words."""

    type: Literal["text"]
    text: Text


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    """One turn."""

    role: Role
    content: Text | list[Part]
    name: str | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """Its content as a list."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class StreamOptions(Strict):
    """What a stream has beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    """A request for an answer. What cannot be done here is refused by name."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=512)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=-(2**62), lt=2**62)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Literal[0, None] = None
    presence_penalty: Literal[0, None] = None
    logprobs: Literal[False, None] = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    alignment_level: int | None = None
    """Ours: the level whose own vector is used, in place of the mode's mix."""
    alignment_mode: str | None = None
    """Ours: another alignment mode, where the model has its weights."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def length_field(self) -> str:
        """The field that says how long an answer may be; the newer one counts."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def new_tokens(self, limits: Limits) -> int:
        """Returns the longest answer."""
        asked = getattr(self, self.length_field)
        return min(DEFAULT_NEW_TOKENS, limits.new_tokens) if asked is None else asked

    def image_urls(self) -> list[str]:
        """Returns where its pictures are, in their order."""
        parts = [part for message in self.messages for part in message.parts]
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def check(self, limits: Limits, served: str) -> None:
        """Raises `ApiError` unless it is asked in its limits and in turns."""
        if self.model != served:
            raise ApiError(
                404,
                f"there is no model {self.model[:100]!r} here: it is called {served!r}",
                code="model_not_found",
                param="model",
            )
        asked = {
            self.length_field: (self.new_tokens(limits), limits.new_tokens),
            "n": (self.n, limits.answers),
        }
        for name, (value, most) in asked.items():
            if not 1 <= value <= most:
                raise ApiError(400, f"{name} must be in 1..{most} here, got {value}", param=name)
        if len(self.image_urls()) > limits.images:
            raise ApiError(
                400,
                f"a request may have {limits.images} images, this one has {len(self.image_urls())}",
                param="messages",
            )
        self._check_turns()

    def _check_turns(self) -> None:
        if self.messages[-1].role != "user":
            raise ApiError(400, "the last message must be the user's", param="messages")
        for message in self.messages:
            has_image = any(isinstance(part, ImagePart) for part in message.parts)
            if has_image and message.role != "user":
                raise ApiError(400, "images belong to the user's messages", param="messages")
            for part in message.parts:
                held = next((t for t in (IMAGE_TOKEN, ALIGN_TOKEN) if t in _text(part)), None)
                if held is not None:
                    raise ApiError(
                        400,
                        f"a text must not hold {held}: send pictures as parts of type image_url",
                        param="messages",
                    )

    def turns(self, pictures: list[Any]) -> list[dict[str, Any]]:
        """Returns the turns as the model's processor takes them.

        Args:
            pictures: one for each of `image_urls`.
        """
        waiting = iter(pictures)
        turns = []
        for message in self.messages:
            content = [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": next(waiting)}
                for part in message.parts
            ]
            role = "system" if message.role == "developer" else message.role
            turns.append({"role": role, "content": content})
        return turns


def _text(part: TextPart | ImagePart) -> str:
    return part.text if isinstance(part, TextPart) else ""
