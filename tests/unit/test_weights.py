"""The safetensors reader against the reference implementation, and against files that lie."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save

from harps_dist.errors import ExportError
from harps_dist.inference.weights import read_safetensors


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, first, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


def test_reads_what_the_reference_implementation_writes():
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=draw),
        "b": torch.randn(7, generator=draw, dtype=torch.float64),
        "half": torch.randn(3, generator=draw).half(),  # leaves what follows at an odd place
        "none": torch.empty(0),
        "one": torch.tensor(2.5),
    }
    found = read_safetensors(save(tensors, {"note": "not a tensor"}), "x")
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"\xff" * 16, "announces a header of"),
        (struct.pack("<Q", 100) + b"{}", "announces a header of 100 bytes where there is room for 2"),
        (pickle.dumps({"a": 1}), "announces a header of"),
        (file_of(b"{"), "its header is damaged"),
        (file_of(b"\xff\xfe"), "its header is damaged"),
        (file_of(b"[" * 100_000), "its header is damaged"),
        (file_of([]), "its header is not an object"),
        (file_of({"a": 3}), "a is no tensor"),
        (file_of({"a": tensor([1], 0, 4) | {"more": 1}}, b"\0" * 4), "a is no tensor"),
        (file_of({"a": tensor([1], 0, 4, "U8")}, b"\0" * 4), "has type 'U8'"),
        (file_of({"a": tensor([1], 0, 4, ["F32"])}, b"\0" * 4), "has type"),
        (file_of({"a": tensor([-1], 0, 4)}, b"\0" * 4), "has no shape or place"),
        (file_of({"a": tensor([True], 0, 4)}, b"\0" * 4), "has no shape or place"),
        (file_of({"a": tensor([1], 0, 8)}, b"\0" * 4), "lies in bytes 0..8 of 4"),
        (file_of({"a": tensor([1], 4, 0)}, b"\0" * 4), "lies in bytes 4..0 of 4"),
        (file_of({"a": tensor([2], 0, 4)}, b"\0" * 4), "takes 8 bytes and was given 4"),
        (file_of({"a": tensor([2**62, 4], 0, 4)}, b"\0" * 4), "more than all its bytes"),
        (file_of({"a": tensor([0, 2**80], 0, 0)}), "more than all its bytes"),
        (file_of({"a": tensor([1] * 60, 0, 4)}, b"\0" * 4), "more than all its bytes"),
        (file_of({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"\0" * 4), "belong to two tensors or to none"),
        (file_of({"a": tensor([1], 4, 8)}, b"\0" * 8), "belong to two tensors or to none"),
        (file_of({"a": tensor([1], 0, 4)}, b"\0" * 8), "4 bytes at its end belong to no tensor"),
        (file_of(b'{"a": {}, "a": {}}'), "a name stands there twice"),
    ],
)
def test_what_is_not_as_the_format_says_is_refused(content, reason):
    with pytest.raises(ExportError, match=r"^x is not a whole safetensors file") as caught:
        read_safetensors(content, "x")
    assert reason in str(caught.value)


def test_every_cut_of_a_file_is_refused():
    content = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float64)})
    for size in range(len(content)):
        with pytest.raises(ExportError):
            read_safetensors(content[:size], "x")
