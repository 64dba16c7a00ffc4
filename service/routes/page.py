"""Page at `/`: the files of the folder `service/page`. They need no API key, and fetch nothing from elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from service.errors import Problem

FOLDER = Path(__file__).parents[1] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
# No inline script or style runs, nothing is fetched from or sent to another server, and no other page shows this one.
# Pictures that a visitor has chosen are addressed as blob:.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks whether its copy is still the same
}
router = APIRouter(include_in_schema=False)


class PageFile(NamedTuple):
    """File of the page: its bytes, media type, and entity tag."""

    content: bytes
    media_type: str
    etag: str


@cache
def files() -> dict[str, PageFile]:
    """Return all files of the page by their paths in the folder, read once."""
    found = {}
    for path in (path for path in FOLDER.rglob("*.*") if path.suffix in TYPES):
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[path.relative_to(FOLDER).as_posix()] = PageFile(content, TYPES[path.suffix], etag)
    return found


@router.get("/")
async def index(request: Request) -> Response:
    """Return the HTML of the page."""
    return answer(request, "index.html")


@router.get("/page/{name:path}")
async def page_file(request: Request, name: str) -> Response:
    """Return a file of the page. Raises Problem 404 if there is no such file."""
    return answer(request, name)


def answer(request: Request, name: str) -> Response:
    """Return a file, or 304 if the browser has the file already. Raises Problem 404 if there is no such file."""
    if name not in files():
        raise Problem(404, "not_found", "the page has no such file")
    content, media_type, etag = files()[name]
    headers = {**HEADERS, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):  # a proxy that compresses puts W/ before the tag
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
