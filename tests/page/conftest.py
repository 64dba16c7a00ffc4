"""Fixtures of the page's tests: Debian's chromium by Playwright, and a server in a thread that can go away."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.application import create_application
from service.context import ServerContext
from tests.service.conftest import imagenet, imagenet_server, stub_server, three

__all__ = ["imagenet", "imagenet_server", "stub_server", "three"]  # fixtures of the service's tests
Visit = Callable[..., Page]


@pytest.fixture(scope="module")  # Playwright's event loop must not outlive the module: other modules run loops too
def browser() -> Iterator[Browser]:
    """Yield the chromium of Debian."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Return a function that opens the page of a server in a browser of its own; options are Playwright's.

    No visit may have an error of the page's, break its policy, or send a request to another server.
    """
    pages: list[Page] = []
    errors: list[str] = []
    servers: set[str] = set()

    def hear(message: ConsoleMessage) -> None:
        if "Policy" in message.text:
            errors.append(message.text)

    def visit(address: str, **options: object) -> Page:
        page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", hear)
        page.on("request", lambda request: servers.add(urlsplit(request.url).netloc))
        page.goto(address)
        pages.append(page)
        return page

    yield visit
    addresses = {urlsplit(page.url).netloc for page in pages}
    for page in pages:
        page.context.close()
    assert not errors
    assert servers <= addresses | {""}  # "" is of blob:


class ThreadedServer:
    """Server of an application in a thread of this process, which can be stopped and started again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._port = app, 0

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/readyz":  # BentoML's
            await PlainTextResponse("")(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        config = uvicorn.Config(
            self._answer, port=self._port, interface="asgi3", lifespan="off", ws="none", log_config=None
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@contextmanager
def served(server: ServerContext) -> Iterator[ThreadedServer]:
    """Serve an application in a thread."""
    threaded = ThreadedServer(create_application(server))
    threaded.start()
    try:
        yield threaded
    finally:
        threaded.stop()


@pytest.fixture
def stubs(stub_server: ServerContext) -> Iterator[ThreadedServer]:
    """Yield a server of four models, of which three answer 0, 1 and 1, in 1, 10 and 100 predicted ms."""
    with served(stub_server) as threaded:
        yield threaded
