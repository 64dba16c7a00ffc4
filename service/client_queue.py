"""Queue of the images that wait for one engine, in an order that shares the engine among clients by their weights."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Generic, Protocol, TypeVar

from service.clients import Client


class Waiting(Protocol):
    """Image of a client; `start` is its place in the shares of all clients, which the queue writes."""

    client: Client
    start: float


Image = TypeVar("Image", bound=Waiting)


class ClientQueue(Generic[Image]):
    """Queue that is first in, first out for each client, and among clients start-time fair (Goyal et al. 1996).

    An image's start is the end of its client's image before, or of what runs now if that is later; its end is 1 /
    weight after its start. The least start is next. Images of one client only keep their order of arrival.
    """

    def __init__(self) -> None:
        self._waiting: dict[Client, deque[Image]] = {}  # clients with images
        self._ends: dict[Client, float] = {}  # of each client's last image, where that is to come
        self._now = 0.0  # start of the image that was taken last
        self._reserved: dict[Client, int] = {}  # images that wait for earlier ones of their request, outside the queue
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, image: Image) -> None:
        """Put an image into its client's place."""
        client = image.client
        image.start = max(self._ends.get(client, 0.0), self._now)
        self._ends[client] = image.start + 1 / client.weight
        self._waiting.setdefault(client, deque()).append(image)
        self._length += 1

    def first(self) -> Image:
        """Return the image that is next. Raises IndexError if none waits."""
        return self._next()[0]

    def popleft(self) -> Image:
        """Take the image that is next. Raises IndexError if none waits."""
        images = self._next()
        image = images.popleft()
        self._now = max(self._now, image.start)
        self._left(image.client)
        return image

    def remove(self, image: Image) -> None:
        """Take an image out. Raises ValueError if it does not wait."""
        try:
            self._waiting[image.client].remove(image)
        except KeyError:
            raise ValueError("the image does not wait") from None
        self._left(image.client)

    def reserve(self, client: Client, images: int) -> None:
        """Count `images` more, or fewer, of a client that wait for earlier ones of their request."""
        self._reserved[client] = self._reserved.get(client, 0) + images
        if not self._reserved[client]:
            del self._reserved[client]

    @property
    def reserved(self) -> int:
        """Number of images that wait for earlier ones of their request."""
        return sum(self._reserved.values())

    def of(self, client: Client, images: int = 1) -> int:
        """Return the number of a client's images; for a request of several `images`, with the reserved ones."""
        return len(self._waiting.get(client, ())) + (self._reserved.get(client, 0) if images > 1 else 0)

    def ahead(self, client: Client, images: int = 1) -> int:
        """Return the number of other images that will run before the last of `images` new ones of a client.

        A single image passes the reserved ones.
        """
        own = self.of(client, images)
        others = set(self._waiting)
        if images > 1:
            others |= self._reserved.keys()
        return own + sum(
            min(self.of(other, images), ceil((own + images) * other.weight / client.weight))
            for other in others
            if other is not client
        )

    def _next(self) -> deque[Image]:
        if not self._length:
            raise IndexError("no image waits")
        if len(self._waiting) == 1:
            return next(iter(self._waiting.values()))
        return min(self._waiting.values(), key=lambda images: images[0].start)

    def _left(self, client: Client) -> None:
        """Count an image of a client less; once none waits, what each client has had is forgotten."""
        self._length -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        if not self._length:
            self._now = max(self._now, *self._ends.values())
            self._ends.clear()
