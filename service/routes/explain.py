"""Route that explains an answer: /explain."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from service import schema
from service.context import Shared, problems
from service.errors import Problem
from service.explain import explain, overlay
from service.inference import deadline_of
from service.routes.classify import IMAGE_BODY, DeadlineMs
from service.select_model import AUTO

OVERLAY: dict[int | str, Any] = {200: {"content": {"image/png": {}}}}
router = APIRouter()


@router.post(
    "/explain",
    response_model=schema.Explanation,
    responses=OVERLAY | problems(400, 401, 404, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": IMAGE_BODY},
)
async def explain_image(
    request: Request,
    server: Shared,
    model: Annotated[str, Query(max_length=200, description="architecture, architecture@dataset, or full tag")],
    index: Annotated[
        int | None, Query(alias="class", ge=0, description="index of the class; by default the most probable")
    ] = None,
    form: Annotated[
        Literal["json", "png"], Query(alias="format", description="the grid as JSON, or the picture under the grid")
    ] = "json",
    deadline_ms: Annotated[DeadlineMs, Query()] = None,
) -> Response:
    """Explain one answer: how much each part of the image speaks for a class.

    A network that ends in global pooling has a class activation map, for the cost of one image. For any other network
    parts of the image are hidden in turn, on the finest grid of 4 to 7 cells an edge that half of the time allows;
    each cell costs an image. `images` is the sum, by which the request is admitted.
    """
    if model.partition("@")[0] == AUTO:
        raise Problem(422, "invalid_parameter", "model: auto explains nothing; name the model that /classify chose")
    request.state.deadline = deadline = deadline_of(server, deadline_ms)
    async with asyncio.timeout_at(deadline) as until:
        with server.device.request():
            found = await server.catalog.fresh(lambda: server.catalog.find(model))
            request.state.tag = found.manifest.tag
            classes = len(found.manifest.labels)
            if index is not None and index >= classes:
                detail = f"class: {found.manifest.tag} has {classes} classes, 0 to {classes - 1}"
                raise Problem(422, "invalid_parameter", detail)
            explained, pixels = await explain(server, request, found, index, until)
    headers = {"Server-Timing": ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in explained.timing_ms)}
    if form == "png":
        picture = await asyncio.to_thread(overlay, pixels, explained.grid)
        return Response(picture, media_type="image/png", headers=headers)
    return Response(explained.model_dump_json(exclude_none=True), media_type="application/json", headers=headers)
