"""BentoML services, which `bentoml serve` runs: one that does it all, or fronts for HTTP and processes for devices."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import bentoml
from bentoml import get_current_service, server_context  # `bentoml.get_current_service` would be looked up on each call
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service import framework_patches, processes
from service.address import default_host, listening_host
from service.application import create_application
from service.context import ServerContext, make_context, make_front
from service.device import LocalDevice
from service.device_process import DeviceProcess
from service.fair_accept import Connections
from service.settings import check_runtime, read_settings, unknown

if TYPE_CHECKING:
    from service.inference_protocol.grpc_server import GrpcServer

STOP_S = 5.0  # beyond the longest request, for which a device process waits for its fronts
FRONT_NICE = 5  # fronts leave the processor to the device processes, so that refusals do not slow answers down
logger = logging.getLogger("bentoml.convserve")

SETTINGS = read_settings()
check_runtime(SETTINGS)
LAYOUT = processes.layout(SETTINGS)
if LAYOUT.split:
    processes.folder()  # made by the first process, before it starts the others
    framework_patches.share_metrics(processes.folder())
else:
    framework_patches.keep_metrics_in_memory()


async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request to the application of this process's service."""
    await get_current_service().asgi(scope, receive, send)


framework_patches.route_past_bentoml(mounted)
framework_patches.leave_out_timeouts()
if not SETTINGS.tracing:
    framework_patches.leave_out_tracing()
framework_patches.use_http_protocol("service.http_limits:BoundedProtocol")
if LAYOUT.fronts > 1:
    framework_patches.use_event_loop("service.fair_accept:loop_factory")
framework_patches.check_address(SETTINGS.grpc_port)

# BentoML's metrics, which label by raw path, and BentoML's access log are off: service/metrics.py and
# service/request_log.py replace them.
QUIET: Any = {"metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}


class Lifecycle:
    """Start, readiness and end of a process of the server."""

    server: ServerContext

    def __init__(self) -> None:
        self._end: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to load models, or to follow the device processes. Until that is done the process is not ready."""
        processes.end_with_parent()
        if problem := self.server.nothing_readable:
            logger.error(problem)
        elif not self.server.catalog.models and not SETTINGS.models:
            logger.warning("no model is published: run `make serve`, or `python -m training publish`")
        self._running = asyncio.create_task(self.server.device.run())
        self._running.add_done_callback(ended)

    def warn(self) -> None:
        """Log a warning for each setting that may be a mistake."""
        catalog = self.server.catalog
        for name in unknown():
            logger.warning("%s is not a setting, and is ignored", name)
        if SETTINGS.invents:
            logger.warning("CONVSERVE_RUNTIME: %s computes nothing, and every answer is invented", SETTINGS.runtime)
        for name, tag in SETTINGS.pins.items():
            if tag not in catalog.models:
                logger.warning("CONVSERVE_PINS: %s is %s, which is not published", name, tag)
        for name, split in SETTINGS.routes.items():
            if (other := split.to or split.shadow) and other not in catalog.models:
                logger.warning("CONVSERVE_ROUTES: %s, for a share of %s, is not published", other, name)
        if "dataset" in SETTINGS.model_fields_set and SETTINGS.dataset not in catalog.datasets:
            logger.warning("CONVSERVE_DATASET: no published model is of %s", SETTINGS.dataset)

    def leave_at_sigterm(self) -> None:
        """At SIGTERM report not ready, so that proxies route elsewhere, and stop when `last_request` returns."""
        stop = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        async def leave(number: int, frame: FrameType | None) -> None:
            if self._running:
                self._running.cancel()  # follows, tunes and links nothing new; what has begun is answered
            await self.last_request()
            if callable(stop):
                stop(number, frame)

        def at_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.server.leaving.set)
            loop.call_soon_threadsafe(lambda: setattr(self, "_end", loop.create_task(leave(number, frame))))

        signal.signal(signal.SIGTERM, at_signal)

    async def last_request(self) -> None:
        """Wait until no new requests come: proxies have seen that this process is not ready."""
        await asyncio.sleep(SETTINGS.drain_s)

    async def __is_ready__(self) -> bool:
        """Return True for /readyz once every load of the start has been tried, until the service is about to stop.

        Raises HTTPException 503, which BentoML sends as text, with the reason while the service is not ready.
        """
        if reason := self.server.not_ready:
            raise HTTPException(503, reason)
        return True


def ended(running: asyncio.Task[None]) -> None:
    """Log the error of a task that should never end."""
    if not running.cancelled() and (error := running.exception()):
        logger.error("models are not followed any more", exc_info=error)


def start_again(serving: asyncio.Task[None]) -> None:
    """Log the error with which a device process stopped to accept fronts, and end, so that BentoML starts another."""
    if not serving.cancelled() and (error := serving.exception()):
        logger.critical("no front can connect any more", exc_info=error)
        os.kill(os.getpid(), signal.SIGKILL)


@bentoml.service(name="convserve_device", workers=LAYOUT.devices, **QUIET)
class DeviceService(Lifecycle):
    """Service of the device processes: scheduler and engines, for the fronts."""

    def __init__(self) -> None:
        super().__init__()
        number = processes.claim(LAYOUT.devices)
        processes.take_gpu(number)
        self.server = make_context(SETTINGS, processes.folder())
        assert isinstance(self.server.device, LocalDevice)
        path = processes.socket_of(number)
        clients = self.server.clients.by_number
        self._process = DeviceProcess(self.server.device, self.server.catalog, path, LAYOUT.fronts, clients)
        self._tasks: set[asyncio.Task[None]] = set()

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load models and to accept fronts."""
        self.begin()
        serving = asyncio.create_task(self._process.serve())
        serving.add_done_callback(start_again)
        self._tasks.add(serving)
        self.leave_at_sigterm()

    async def last_request(self) -> None:
        """Wait until the fronts have answered their last requests and have gone."""
        await super().last_request()
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTINGS.timeout_s + STOP_S):
                await self._process.deserted.wait()


FRONT: Any = {
    "name": "convserve",
    "workers": LAYOUT.fronts,
    "http": {"host": default_host()},  # BENTOML_HOST and --host override the default
    "traffic": {"timeout": SETTINGS.timeout_s + 5},
    # BentoML would ask a hung device process, and answer /readyz with 500; a front knows whether its devices are ready.
    "runner_probe": {"enabled": False},
}


@bentoml.service(**FRONT, **QUIET)
@bentoml.asgi_app(mounted, path="/")
class ConvServe(Lifecycle):
    """Service that answers HTTP for every published model."""

    if LAYOUT.split:
        device = bentoml.depends(DeviceService)

    def __init__(self) -> None:
        super().__init__()
        if LAYOUT.split:
            os.nice(FRONT_NICE)
            devices = [processes.socket_of(number) for number in range(1, LAYOUT.devices + 1)]
            self.server = make_front(SETTINGS, devices, processes.folder())
            own = (server_context.worker_index or 1) - 1
            Connections.current = Connections(processes.folder() / "connections", LAYOUT.fronts, own)
        else:
            self.server = make_context(SETTINGS)
        self.asgi = create_application(self.server)
        self._grpc: GrpcServer | None = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Begin to load or to follow, and to answer requests."""
        self.begin()
        if SETTINGS.grpc_port:
            from service.inference_protocol.grpc_server import GrpcServer  # whose library takes 20 MB

            self._grpc = GrpcServer(self.server)
            await self._grpc.start(listening_host(), SETTINGS.grpc_port, shared=LAYOUT.fronts > 1)
        if (server_context.worker_index or 1) == 1:
            self.warn()
            logger.info("%s", LAYOUT)
        self.leave_at_sigterm()

    async def last_request(self) -> None:
        """Wait until no new requests come, over HTTP and gRPC."""
        await super().last_request()
        if self._grpc:
            self._grpc.end(SETTINGS.timeout_s)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Wait until the last requests over gRPC are answered."""
        if self._grpc:
            await self._grpc.stop(SETTINGS.timeout_s)
