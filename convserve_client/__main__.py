"""Command line: `python -m convserve_client URL FOLDER --model NAME` writes a CSV row for each picture."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from pathlib import Path

from convserve_client.client import BATCH, AsyncConvServeClient
from convserve_client.conversation import Question
from convserve_client.folder import FolderError, classify_folder

KEY = "CONVSERVE_API_KEY"
INTERRUPTED = 130


def at_least_one(text: str) -> int:
    """Return a number from 1 on. Raises ValueError for another text, which argparse reports."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("the least is 1")
    return number


def parsed() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        "python -m convserve_client",
        description="Classify the pictures of a folder, and write a CSV row for each.",
        epilog=f"The server's API key, if it needs one, is read from {KEY}.",
    )
    parser.add_argument("url", metavar="URL", help="of the server, such as http://localhost:3000")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with pictures, also in folders below")
    parser.add_argument("--model", required=True, help="architecture, architecture@dataset, full tag, or auto")
    parser.add_argument("--precision", help="fp32, bf16, fp16 or int8 (default: the server's choice)")
    parser.add_argument("--max-latency-ms", type=float, help="with auto: the most accurate model within it, an image")
    parser.add_argument("--min-accuracy", type=float, help="with auto: lowest top-1 accuracy, 0 to 1")
    parser.add_argument("--out", type=Path, help="file, which is continued if it exists (default: standard output)")
    parser.add_argument("--batch", type=at_least_one, default=BATCH, help="images in a request (default: %(default)s)")
    parser.add_argument("--concurrency", type=at_least_one, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument(
        "--patience-s", type=float, default=60.0, help="seconds in which a request is repeated (default: %(default)s)"
    )
    return parser.parse_args()


async def run(options: argparse.Namespace) -> str:
    """Classify the folder, and return the summary."""
    question = Question(
        options.model,
        top_k=1,
        precision=options.precision,
        max_latency_ms=options.max_latency_ms,
        min_accuracy=options.min_accuracy,
    )
    async with AsyncConvServeClient(options.url, api_key=os.environ.get(KEY), patience_s=options.patience_s) as client:
        return await classify_folder(
            client, options.folder, question, options.out, batch=options.batch, concurrency=options.concurrency
        )


def main() -> None:
    """Run the command; say on standard error how many pictures there were, or what is wrong."""
    options = parsed()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be in UTF-8
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    again = "; the same command continues" if options.out else "; with --out FILE a run can be continued"
    try:
        print(asyncio.run(run(options)), file=sys.stderr)
    except BrokenPipeError:  # whoever read the rows has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (FolderError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print(f"stopped{again}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
