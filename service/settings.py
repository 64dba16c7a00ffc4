"""Settings of the server, read from environment variables that start with CONVSERVE_."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from engines.runtimes.registry import Runtime
from service.cost import batch_sizes

EMBEDDED_DATASET = "mnist5k"  # training has a recipe of this data set for every architecture


Secret = Annotated[SecretStr, Field(min_length=1)]


class Settings(BaseSettings):
    """Settings of the server; each field is read from CONVSERVE_<NAME IN CAPITALS>.

    `pins` is JSON, such as {"lenet5": "lenet5:mnist5k-5c93254d"}.
    """

    model_config = SettingsConfigDict(env_prefix="CONVSERVE_", frozen=True)

    runtime: Runtime | Literal["auto"] = "auto"
    precision: str = "auto"
    load: Literal["start", "first_use"] = "start"
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    scan_s: Annotated[float, Field(gt=0)] = 10.0
    dataset: str = EMBEDDED_DATASET
    pins: dict[str, str] = {}
    max_batch: Annotated[int, Field(ge=1)] = 32
    max_waiting: Annotated[int, Field(ge=1)] = 256
    max_body_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    max_bodies_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    scaled_jpeg: bool = False
    decoders: Annotated[int, Field(ge=1)] = 2
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    drain_s: Annotated[float, Field(ge=0)] = 1.0
    access_log: bool = True
    tracing: bool = False
    api_keys: frozenset[Secret] = frozenset()
    admin_token: Secret | None = None

    @property
    def warm_batches(self) -> list[int]:
        """Batch sizes that an engine runs before it serves: powers of two, and the largest.

        With `load` "first_use" a request waits for the loading, so only one image is run.
        """
        if self.load == "first_use":
            return [1]
        return batch_sizes(self.max_batch)
