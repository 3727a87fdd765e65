"""Pictures that come with a request: in it as `data:` URLs, or from hosts that are allowed."""

import asyncio
import base64
import binascii
import io

import aiohttp
from PIL import Image, UnidentifiedImageError
from yarl import URL

from schemas.addresses import AddressGuard
from schemas.errors import SampleRejected
from training.serve.commands import Limits
from training.serve.errors import ApiError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Kinds of pictures that are decoded."""
ALLOWED_PORTS = (80, 443)
READ_BYTES = 2**16


def decode_data_url(url: str, limits: Limits) -> bytes:
    """Returns the bytes in a `data:image/...;base64,...` URL.

    Raises:
        ApiError: if it is no such URL, or too long.
    """
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise bad("an image must be a URL of the form data:image/jpeg;base64,...")
    if len(data) * 3 // 4 > limits.image_bytes + 3:
        raise too_large(limits)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"an image's base64 cannot be read: {error}") from error


def open_picture(data: bytes, limits: Limits) -> Image.Image:
    """Returns the picture in a file's bytes, decoded.

    Raises:
        ApiError: if it is none, or has too many bytes or pixels.
    """
    if len(data) > limits.image_bytes:
        raise too_large(limits)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > limits.image_pixels:
            raise bad(
                f"an image has {width} x {height} pixels, and {limits.image_pixels:,} are allowed"
            )
        picture.load()
    except UnidentifiedImageError as error:
        raise bad(f"an image is none that can be read: {', '.join(FORMATS)} are") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise bad(f"an image has more than {limits.image_pixels:,} pixels") from error
    except (OSError, SyntaxError, ValueError, OverflowError, EOFError) as error:
        raise bad(
            f"an image cannot be read ({', '.join(FORMATS)} are): {str(error)[:200]}"
        ) from error
    return picture


class RemotePictures:
    """Fetches pictures from the hosts that are allowed, and from no other.

    Addresses are judged by the guard of the fetch stage, where the connection is made: names,
    literals and names that change their address alike. Redirects are not followed.
    """

    def __init__(
        self, allow_hosts: tuple[str, ...], limits: Limits, guard: AddressGuard | None = None
    ) -> None:
        self._hosts, self._limits = frozenset(host.lower() for host in allow_hosts), limits
        self._guard = guard or AddressGuard((), ALLOWED_PORTS)

    async def fetch(self, address: str) -> bytes:
        """Returns the bytes under a URL.

        Raises:
            ApiError: whatever is in the way.
        """
        if not self._hosts:
            raise bad(
                "images are taken as data: URLs alone; whoever runs the server can allow hosts by "
                "--allow-hosts"
            )
        try:
            url = URL(address)
            self._guard.check_url(url)
            if (url.raw_host or "").lower() not in self._hosts:
                raise bad(f"images are not fetched from {url.raw_host}: it is not allowed here")
            return await asyncio.wait_for(self._fetch(url), self._limits.body_seconds)
        except SampleRejected as rejected:
            raise bad(f"an image's URL is refused: {rejected.detail}") from rejected
        except TimeoutError as error:
            raise bad("an image's host took too long") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise bad(f"an image could not be fetched: {str(error)[:200]}") from error

    async def _fetch(self, url: URL) -> bytes:
        connector = aiohttp.TCPConnector(
            socket_factory=self._guard.open_socket, happy_eyeballs_delay=None
        )
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise bad(f"an image's host answered {answer.status}; redirects are not followed")
            body = bytearray()
            async for chunk in answer.content.iter_chunked(READ_BYTES):
                body += chunk
                if len(body) > self._limits.image_bytes:
                    raise too_large(self._limits)
            return bytes(body)


def bad(message: str) -> ApiError:
    """Returns the error of an image that is not taken."""
    return ApiError(400, message, code="invalid_image", param="messages")


def too_large(limits: Limits) -> ApiError:
    """Returns the error of an image with too many bytes."""
    return bad(f"an image has more than {limits.image_bytes:,} bytes")
