"""State dicts of others: reading them from files, and loading them into a network or saying why they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import CheckpointError

# Keys under which training scripts keep a state dict beside an optimizer and more; the first that is there is taken.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "ema"),
)
AVERAGED = "n_averaged"  # counter that torch.optim.swa_utils.AveragedModel adds
COMPILED = "_orig_mod."  # added by torch.compile before the names of a compiled module's tensors
COUNTER = ".num_batches_tracked"  # of batch norm, without effect in inference; older and converted files lack it
SHOWN = 5  # keys of a kind that an error names
LONGEST = 80  # characters of a key in an error


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or torch's own format; the contents decide, not the file's name.

    Torch's format is read with `weights_only`, so that a file cannot run code. If a file holds several state dicts,
    one is taken and named. Raises CheckpointError for any other contents.
    """
    try:
        if is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file:  # given a path, torch would go by its ending
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # torch raises nearly anything on other contents
        raise CheckpointError(
            f"{path} holds more than weights, or none, and was not loaded: "
            "torch.save(model.state_dict(), FILE) writes weights alone"
        ) from error
    return tensors_of(contents, path)


def is_safetensors(path: Path) -> bool:
    """Return True if a file begins as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") <= path.stat().st_size


def tensors_of(contents: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file holds. Raises CheckpointError if there is none."""
    found = dict(contents) if isinstance(contents, Mapping) else {}
    while nested := nested_keys(found):
        others = f", not {', '.join(nested[1:])}" if nested[1:] else ""
        print(f"{path.name}: taking {nested[0]!r}{others}")
        found = dict(found[nested[0]])
    if odd := [key for key in found if not isinstance(key, str)]:
        raise CheckpointError(f"{path} holds no state dict: its keys are not names of weights, such as {odd[0]!r}")
    if odd := [key for key, value in found.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} holds no state dict: {listed(odd)} {'are' if odd[1:] else 'is'} no tensor")
    if odd := [key for key, value in found.items() if value.is_meta or value.is_quantized or not is_dense(value)]:
        raise CheckpointError(f"{path} holds tensors that are sparse, quantised or without data: {listed(odd)}")
    if not found:
        raise CheckpointError(f"{path} holds no state dict")
    return found


def nested_keys(contents: Mapping[Any, object]) -> list[str]:
    """Return the keys of the state dicts in what a file holds, the one to take first; none if there are none inside."""
    known = [key for key in NESTED if isinstance(contents.get(key), Mapping)]
    if known:
        return known
    unknown = [key for key, value in contents.items() if isinstance(value, Mapping) and holds_tensors(value)]
    return unknown if len(unknown) == 1 else []


def holds_tensors(value: Mapping[Any, object]) -> bool:
    """Return True if every value of a mapping with string keys is a tensor, and there is at least one."""
    return bool(value) and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def is_dense(value: Tensor) -> bool:
    """Return True if a tensor holds one number for each of its elements."""
    return value.layout == torch.strided


def unwrapped(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Return a state dict without the prefixes that wrap the whole model, such as `module.` of DistributedDataParallel.

    A prefix stands before every key, and not before all of `own`, the network's own keys. Removed prefixes are printed.
    """
    own_first = {key.partition(".")[0] for key in own}
    removed = ""
    state = {key.replace(COMPILED, ""): value for key, value in state.items() if key != AVERAGED}
    while True:
        first = {key.partition(".")[0] for key in state}
        if len(first) != 1 or first == own_first or not all("." in key for key in state):
            break
        (prefix,) = first
        removed += f"{prefix}."
        state = {key.removeprefix(f"{prefix}."): value for key, value in state.items()}
    if removed:
        print(f"without {removed!r}, which stood before every key")
    return state


def fit(net: nn.Module, state: Mapping[str, Tensor], title: str) -> None:
    """Load a state dict into a network. Raises CheckpointError, which names the first keys that do not fit."""
    own: dict[str, Tensor] = net.state_dict()
    state = {key: value for key, value in own.items() if key.endswith(COUNTER)} | dict(state)
    problems = {
        "has no": [key for key in own if key not in state],
        "has the unknown": [key for key in state if key not in own],
        "has other shapes:": [
            f"{key} {list(state[key].shape)}, not {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "has other numbers, or NaN, in": [
            key
            for key in own.keys() & state.keys()
            if own[key].is_floating_point() and not (state[key].is_floating_point() and state[key].isfinite().all())
        ],
    }
    if any(problems.values()):
        texts = [f"it {problem} {listed(keys)}" for problem, keys in problems.items() if keys]
        raise CheckpointError(f"{title}: {'; '.join(texts)}")
    net.load_state_dict(state)


def listed(keys: list[str]) -> str:
    """Return the first keys as text, and how many more there are."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    shown = [key if len(key) <= LONGEST else f"{key[:LONGEST]}…" for key in keys[:SHOWN]]
    return f"{', '.join(shown)}{more}"
