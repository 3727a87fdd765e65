"""Names to addresses: many look-ups at once, remembered for a while, failures too."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.fetch.hosts.names import FAILED_SECONDS, FOUND_SECONDS, NameCache, Resolution

LOOKUPS_AT_ONCE = 64


class CachedResolver(AbstractResolver):
    """Resolves by the system's resolver, each name once while its answer is fresh."""

    def __init__(self, cache: NameCache) -> None:
        self._cache = cache
        self._pending: dict[str, asyncio.Task[Resolution]] = {}
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns a name's addresses, IPv4 first: a machine without IPv6 loses no time then.

        Raises:
            OSError: if the name has none.
        """
        answer = self._cache.get(host)
        if answer is None:
            if host not in self._pending:
                self._pending[host] = asyncio.create_task(self._ask(host))
            # Shielded: one image's deadline must not cancel the look-up that others wait for.
            answer = await asyncio.shield(self._pending[host])
        if answer.error is not None:
            raise OSError(None, answer.error)
        return [ResolveResult(**{**result, "port": port}) for result in answer.found]

    async def _ask(self, host: str) -> Resolution:
        now = time.monotonic()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            answer = Resolution(now + FOUND_SECONDS, found, None)
        except (OSError, UnicodeError) as error:
            answer = Resolution(now + FAILED_SECONDS, [], str(error)[:200])
        finally:
            del self._pending[host]
        self._cache.keep(host, answer)
        return answer

    async def close(self) -> None:
        """Lets go of the threads; those still asking end by themselves."""
        for task in list(self._pending.values()):
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str) -> list[ResolveResult]:
    infos = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return [
        ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=0,
            family=family,
            proto=protocol,
            flags=socket.AI_NUMERICHOST,
        )
        for family, _, protocol, _, address in infos
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
