"""Server under test: its address, and the API key that each request carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests

from loadtest.traffic import ScenarioError

# The server's setting is CONVSERVE_API_KEYS, all keys that it accepts; a client has one of them.
API_KEY = "CONVSERVE_API_KEY"
LONGEST = 500  # characters of an answer that an error shows
API_KEY_HELP = f"a key that the server accepts (default: ${API_KEY}, which no list of processes shows)"


@dataclass(frozen=True)
class Server:
    """Server under test: its address, with any path in front of its routes, and the headers of each request."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Return the address without a slash at its end."""
        return self.url

    def problem(self, answer: requests.Response) -> str:
        """Return a line on an answer that is an error; for 401 the line names the option of the key."""
        if answer.status_code == requests.codes.unauthorized:
            fault = "does not accept the API key" if self.headers else "needs an API key"
            return f"{self} {fault}: name one with --api-key, or {API_KEY} in the environment"
        try:
            reason = str(answer.json()["detail"])
        except (KeyError, TypeError, ValueError):
            reason = answer.text[:LONGEST] or answer.reason
        return f"{self} answers {answer.status_code}: {reason}"


def server_of(host: str, api_key: str | None = None) -> Server:
    """Return the server at an address, http://HOST:PORT or with a path, to which slashes at the end add nothing.

    Raises ScenarioError if the address or the key cannot be one.
    """
    url = host.strip()
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError as error:
        raise ScenarioError(f"--host: {url!r} is no address: {error}") from None
    if "://" not in url:
        raise ScenarioError(f"--host: {url!r} has no scheme: write http://{url.lstrip('/')}")
    if address.scheme not in {"http", "https"} or not address.hostname or port == 0:
        raise ScenarioError(f"--host: {url!r} is no address of a server, such as http://localhost:3000")
    if address.query or address.fragment:
        raise ScenarioError(f"--host: {url!r} has a ? or #: write the address only, such as http://localhost:3000")
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ScenarioError("--api-key: a key of other characters than printable ASCII fits into no HTTP header")
    return Server(url.rstrip("/"), {"X-API-Key": key} if key else {})
