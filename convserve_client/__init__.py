"""Client of convserve, for Python programs and as a command."""

from convserve_client.answers import ClassifiedImage, RankedClass, RankedSuperclass, Result, ServerProblem, StageTimes
from convserve_client.client import AsyncConvServeClient, ConvServeClient
from convserve_client.conversation import Question

__all__ = [
    "AsyncConvServeClient",
    "ClassifiedImage",
    "ConvServeClient",
    "Question",
    "RankedClass",
    "RankedSuperclass",
    "Result",
    "ServerProblem",
    "StageTimes",
]
