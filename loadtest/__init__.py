"""What each model gives and costs under load, over HTTP."""

import locust  # noqa: F401 (first of all: it patches sockets and ssl for gevent)
