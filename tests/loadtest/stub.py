"""Stub of a server: answers each request to classify with a fixed or computed body."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def prediction(label: str, probability: float = 1.0) -> bytes:
    """Return the body of an answer with one prediction."""
    return json.dumps({"predictions": [{"label": label, "probability": probability}]}).encode()


class StubHandler(BaseHTTPRequestHandler):
    """Handler that sends the bytes of `answer`, or closes the connection if they are empty."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> bytes:
        """Return the body of the next answer; subclasses may wait, or return something malformed."""
        return prediction("7")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = self.answer()
        if not body:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Alternates(StubHandler):
    """Handler that answers with another class each time, like a server that mixes up its batches."""

    labels = itertools.cycle("01234")

    def answer(self) -> bytes:
        """Return the next of five classes."""
        return prediction(next(self.labels))


@contextmanager
def stub_server(handler: type[StubHandler]) -> Iterator[str]:
    """Serve with `handler` in a thread while the context is open; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
