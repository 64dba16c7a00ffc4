"""Synchronous and asynchronous client."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import Self

import httpx

from convserve_client.answers import ClassifiedImage, Result, ServerProblem
from convserve_client.conversation import Conversation, Outgoing, Question, Reply, conversation

Image = bytes | str | os.PathLike[str]  # bytes of a file, or the path of a file
BATCH = 16  # images in a request
BATCH_BYTES = 6 * 1024 * 1024  # in a request; a server takes 10 MiB unless its settings say otherwise
LARGEST = 64 * 1024 * 1024  # bytes of a file that is sent
PATIENCE_S = 30.0


class ConvServeClient:
    """Client of one server, with its connections; a context manager that closes them.

    A request that fails for a passing reason, as when the server is overloaded or restarted, is sent again, when the
    server says or after growing waits, as long as `patience_s` seconds have not passed.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        patience_s: float = PATIENCE_S,
        http: httpx.Client | None = None,
    ) -> None:
        """Ask the server at `url`, such as http://localhost:3000; `http` brings proxies or certificates of your own."""
        self._url = checked(url)
        self._headers = headers_with(api_key)
        self._patience_s = patience_s
        self._http = http or httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections to the server."""
        self._http.close()

    def classify(self, image: Image, question: Question | str) -> ClassifiedImage:
        """Return the answer to one image, by a model's name or by more parameters. Raises ServerProblem."""
        (result,) = self.classify_many([image], question)
        if isinstance(result, ServerProblem):
            raise result
        return result

    def classify_many(
        self, images: Iterable[Image], question: Question | str, *, batch: int = BATCH
    ) -> Iterator[Result]:
        """Yield the answer to each image, or its problem, in order, with `batch` images in a request.

        Only the images of one request are in memory at a time.
        """
        asked = Question(question) if isinstance(question, str) else question
        for chunk in chunks(images, batch):
            yield from self._carry_out(conversation(chunk, asked, self._patience_s))

    def _carry_out(self, steps: Conversation) -> list[Result]:
        reply: Reply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                results: list[Result] = end.value
                return results
            reply = None
            if isinstance(step, Outgoing):
                reply = self._send(step)
            else:
                time.sleep(step)

    def _send(self, request: Outgoing) -> Reply:
        try:
            return self._http.post(
                self._url,
                params=request.parameters,
                content=request.content,
                files=request.files,
                headers=self._headers,
                timeout=request.timeout_s,
            )
        except httpx.TransportError as error:
            return error


class AsyncConvServeClient:
    """Client of one server as ConvServeClient is, for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        patience_s: float = PATIENCE_S,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """Ask the server at `url`, such as http://localhost:3000; `http` brings proxies or certificates of your own."""
        self._url = checked(url)
        self._headers = headers_with(api_key)
        self._patience_s = patience_s
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections to the server."""
        await self._http.aclose()

    async def classify(self, image: Image, question: Question | str) -> ClassifiedImage:
        """Return the answer to one image, by a model's name or by more parameters. Raises ServerProblem."""
        (result,) = [result async for result in self.classify_many([image], question)]
        if isinstance(result, ServerProblem):
            raise result
        return result

    async def classify_many(
        self, images: Iterable[Image], question: Question | str, *, batch: int = BATCH, concurrency: int = 4
    ) -> AsyncGenerator[Result, None]:
        """Yield the answer to each image, or its problem, in order, with `concurrency` requests at a time.

        Only the images of these requests are in memory. Files are read in a thread.
        """
        asked = Question(question) if isinstance(question, str) else question
        waiting = chunks(images, batch)
        tasks: deque[asyncio.Task[list[Result]]] = deque()
        try:
            while True:
                while len(tasks) < concurrency and (chunk := await asyncio.to_thread(following, waiting)):
                    tasks.append(asyncio.create_task(self._carry_out(conversation(chunk, asked, self._patience_s))))
                if not tasks:
                    return
                for result in await tasks.popleft():
                    yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, steps: Conversation) -> list[Result]:
        reply: Reply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                results: list[Result] = end.value
                return results
            reply = None
            if isinstance(step, Outgoing):
                reply = await self._send(step)
            else:
                await asyncio.sleep(step)

    async def _send(self, request: Outgoing) -> Reply:
        try:
            return await self._http.post(
                self._url,
                params=request.parameters,
                content=request.content,
                files=request.files,
                headers=self._headers,
                timeout=request.timeout_s,
            )
        except httpx.TransportError as error:
            return error


def checked(url: str) -> str:
    """Return the address of /classify on a server. Raises ValueError if the server's address is none."""
    try:
        address = httpx.URL(url)
        known = address.scheme in {"http", "https"} and address.host
    except httpx.InvalidURL:
        known = False
    if not known:
        raise ValueError(f"{url!r} is no address of a server; the form is http://localhost:3000")
    return f"{url.rstrip('/')}/classify"


def headers_with(api_key: str | None) -> dict[str, str]:
    """Return the headers that send a key, if there is one. Raises ValueError for a key that no header can have."""
    key = (api_key or "").strip()  # one that was read from a file ends in a line break
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key has characters that a header cannot have")
    return {"X-API-Key": key} if key else {}


def chunks(images: Iterable[Image], batch: int) -> Iterator[list[bytes | ServerProblem]]:
    """Yield the images of each request in turn: at most `batch`, and more than BATCH_BYTES only if it is one image."""
    chunk: list[bytes | ServerProblem] = []
    held = 0
    for image in images:
        loaded = load(image)
        size = len(loaded) if isinstance(loaded, bytes) else 0
        if chunk and (len(chunk) >= batch or held + size > BATCH_BYTES):
            yield chunk
            chunk, held = [], 0
        chunk.append(loaded)
        held += size
    if chunk:
        yield chunk


def following(waiting: Iterator[list[bytes | ServerProblem]]) -> list[bytes | ServerProblem] | None:
    """Return the next images, or None at the end."""
    return next(waiting, None)


def load(image: Image) -> bytes | ServerProblem:
    """Return the bytes of an image, or the problem of a file that cannot be read or sent."""
    if isinstance(image, bytes):
        return image
    path = Path(image)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            return ServerProblem(0, "too_large", f"{path} has {size:,} bytes; at most {LARGEST:,} are sent")
        return path.read_bytes()
    except OSError as error:
        return ServerProblem(0, "unreadable", f"{path}: {error.strerror}")
