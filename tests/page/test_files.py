"""Tests of the page's files without a browser: their size, policy and caching, and that nothing is from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engines.published.store import PublishedModel
from service.architectures import read_cards
from service.context import make_context
from service.routes.page import FOLDER, files
from service.settings import Settings
from tests.service.stubs import client_of

MOST_BYTES = 60_000  # of our own JavaScript and CSS
OURS = sorted([*FOLDER.glob("*.js"), *FOLDER.glob("*.css")])


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in OURS) <= MOST_BYTES


@pytest.mark.parametrize("path", [*OURS, FOLDER / "index.html"], ids=lambda path: path.name)
def test_a_file_is_plain_and_fetches_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|style=| on\w+=\"", text
    )
    assert not re.findall(r"(?:src|href|url|import|fetch)\W+https?://", text)
    assert all((FOLDER / name).exists() for name in re.findall(r'from "\./(.+?)"', text))
    assert all((FOLDER / name).exists() for name in re.findall(r'"page/([\w./]+)"', text))
    assert len(text.splitlines()) <= 400


def test_what_was_new_is_known_of_every_network() -> None:
    new = json.loads((FOLDER / "new.json").read_text())
    cards = read_cards().values()
    assert not [card.name for card in cards if not new.keys() & {card.name, card.family}]
    assert not new.keys() - {name for card in cards for name in (card.name, card.family)}


@pytest.mark.anyio
async def test_the_page_needs_no_key_and_has_a_strict_policy(lenet5: PublishedModel) -> None:
    async with client_of(make_context(Settings.model_validate({"api_keys": ["one"]}))) as client:
        for path in ["/", *(f"/page/{name}" for name in files())]:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            for prefix in ("", "W/"):
                known = await client.get(path, headers={"If-None-Match": prefix + answer.headers["etag"]})
                assert (known.status_code, known.content) == (304, b"")
        for path in ("/page/nosuch.js", "/page/../app.py", "/page/%2e%2e/settings.py", "/page/"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert (await client.get("/models")).status_code == 401
        assert (await client.post("/explain?model=lenet5", content=b"")).status_code == 401
