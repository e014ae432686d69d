"""A reader of the safetensors format that needs torch and numpy alone, and believes nothing that the file says.

A file is 8 bytes, the length of a JSON header, the header, and raw little-endian values. There is nothing in it to
execute; what could go wrong are lengths and places, and each of them is checked before it is used.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harps_dist.errors import ExportError

DTYPES: dict[str, np.dtype] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_LENGTH = 8  # bytes, of the header's length
_MAX_HEADER = 100_000_000  # as the reference implementation
_MAX_AXES = 8


def read_safetensors(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors, by name, in the content of a .safetensors file; copies, on the CPU.

    name: of the file, for messages. Raises ExportError where the content is not what the format says: a header that
    is no JSON or too long, an unknown type, a shape that does not fit its bytes, bytes outside the file, used twice or
    by nobody.
    """

    def require(condition: bool, reason: str) -> None:
        if not condition:
            raise ExportError(f"{name} is not a whole safetensors file: {reason}. Export the run again.")

    require(len(content) >= _LENGTH, f"it has {len(content)} bytes, and its header's length alone takes {_LENGTH}")
    length = int.from_bytes(content[:_LENGTH], "little")
    room = min(_MAX_HEADER, len(content) - _LENGTH)
    require(length <= room, f"it announces a header of {length} bytes where there is room for {room}")
    try:
        header = json.loads(content[_LENGTH : _LENGTH + length].decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{name} is not a whole safetensors file: its header is damaged ({error}).") from None
    require(isinstance(header, dict), "its header is not an object")
    header.pop("__metadata__", None)
    data, tensors, places = memoryview(content)[_LENGTH + length :], {}, []
    for key, entry in header.items():
        require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}, f"{key} is no tensor")
        require(
            entry["dtype"] in list(DTYPES), f"{key} has type {entry['dtype']!r}, expected one of {', '.join(DTYPES)}"
        )
        shape, offsets, dtype = entry["shape"], entry["data_offsets"], DTYPES[entry["dtype"]]
        require(_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2, f"{key} has no shape or place")
        whole = len(shape) <= _MAX_AXES and max(shape, default=0) <= len(data)
        require(whole, f"{key} has shape {shape}, more than all its bytes")
        first, end = offsets
        require(first <= end <= len(data), f"{key} lies in bytes {first}..{end} of {len(data)}")
        size = math.prod(shape) * dtype.itemsize
        require(end - first == size, f"{key} of shape {shape} takes {size} bytes and was given {end - first}")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, first).reshape(shape)
        tensors[key] = torch.from_numpy(values.astype(dtype.newbyteorder("=")))
        places.append((first, end))
    reached = 0
    for first, end in sorted(places):
        require(
            first == reached, f"bytes {min(first, reached)}..{max(first, reached)} belong to two tensors or to none"
        )
        reached = end
    require(reached == len(data), f"{len(data) - reached} bytes at its end belong to no tensor")
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
