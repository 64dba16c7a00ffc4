"""Models of a bucket, taken up while the server runs: `CONVSERVE_MODELS`."""

from __future__ import annotations

import asyncio
import logging
from threading import Event

from engines.published.bucket import ModelBucket
from engines.published.urls import BucketError
from service.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger("bentoml.convserve")


class Puller:
    """Downloads of new models from the bucket of the settings into the model store, where the catalogue finds them.

    `problem` is the reason why the bucket, or a model in it, could not be read when it was last looked at, or None.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._url, self._scan_s = settings.models, settings.scan_s
        self._metrics = metrics
        self._bucket: ModelBucket | None = None
        self._stopped = Event()
        self.problem: str | None = None

    async def pull(self, *, wait: bool = False) -> None:
        """Download what is new, in a thread; `wait` for another process that does so.

        What cannot be downloaded is logged, and `problem` says why. If the call is cancelled, as the server's end does,
        no more is downloaded: Python waits for its threads.
        """
        if not self._url:
            return
        try:
            pulled, error_of_a_model = await asyncio.to_thread(self._pull, self._url, wait)
        except asyncio.CancelledError:
            self._stopped.set()
            raise
        except Exception as error:  # the models that are here are served
            problem = f"CONVSERVE_MODELS: {error}"
            if self.problem != problem:
                logger.warning("%s", problem, exc_info=not isinstance(error, BucketError | OSError))
            self.problem = problem
        else:
            self.problem = error_of_a_model and f"CONVSERVE_MODELS: {error_of_a_model}"
            for tag in pulled:
                logger.info("pulled %s from %s", tag, self._url)
        self._metrics.looked_into_bucket(failed=self.problem is not None)

    async def follow(self) -> None:
        """Look into the bucket every `scan_s` seconds. Returns at once if the settings name none."""
        while self._url:
            await asyncio.sleep(self._scan_s)
            await self.pull()

    def _pull(self, url: str, wait: bool) -> tuple[list[str], str | None]:
        """Return the tags of the models that were downloaded, and the error of a model that could not be, or None."""
        if self._bucket is None:  # here, since some file systems ask for credentials when they are opened
            self._bucket = ModelBucket(url, self._stopped)
        pulled = self._bucket.pull_new(wait)
        return pulled, next(iter(self._bucket.errors.values()), None)
