"""A checkpoint is what was written, the old file, or a clear error; never something in between."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from jkoflow import checkpoint
from jkoflow.checkpoint import CheckpointError

TENSORS = {
    "single": torch.randn(3, 4),
    "double": torch.randn(2, 2).double(),
    "integer": torch.arange(5),
    "strided": torch.randn(4, 6)[:, ::2],
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
}
DESCRIPTION = {"name": "Grüße", "pi": 0.1 + 0.2, "list": [1, None, True], "nested": {"a": 1e-300}}


def write_raw(path, header, tensors=TENSORS):
    """A safetensors file with any header, as another program or version might have written it."""
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, path, metadata=header)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_what_was_saved_comes_back_bit_by_bit(tmp_path):
    checkpoint.save(tmp_path / "file", "thing", TENSORS, DESCRIPTION)
    tensors, description = checkpoint.load(tmp_path / "file", "thing")
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(bits(tensors[name]), bits(tensor)), name


@given(number=st.floats(allow_nan=False, allow_infinity=False), text=st.text(), count=st.integers())
def test_descriptions_keep_full_precision(tmp_path_factory, number, text, count):
    path = tmp_path_factory.mktemp("checkpoint") / "file"
    description = {"number": number, "text": text, "count": count}
    checkpoint.save(path, "thing", {}, description)
    assert checkpoint.load(path, "thing") == ({}, description)


def test_gradients_are_not_needed_and_not_kept(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3))
    checkpoint.save(tmp_path / "file", "thing", {"p": parameter}, {})
    assert not checkpoint.load(tmp_path / "file", "thing")[0]["p"].requires_grad


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such file"):
        checkpoint.load(tmp_path / "nowhere", "thing")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path, "thing")


def test_truncated_at_any_length(tmp_path):
    path = tmp_path / "file"
    checkpoint.save(path, "thing", TENSORS, DESCRIPTION)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged or not a jkoflow file"):
            checkpoint.load(path, "thing")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, b"\xff" * 64, json.dumps({"a": 1}).encode()])
def test_something_else_altogether(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or not a jkoflow file"):
        checkpoint.load(tmp_path / "file", "thing")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is a safetensors file but was not written by jkoflow"),
        ({"format": "pt"}, "is a safetensors file but was not written by jkoflow"),
        ({"jkoflow": "[1]"}, "is a safetensors file but was not written by jkoflow"),
        ({"jkoflow": "{"}, "is damaged or not a jkoflow file"),
        ({"jkoflow": '{"format_version": 1, "kind": "thing"}'}, "is damaged: it has no description"),
        (
            {"jkoflow": '{"format_version": 99, "kind": "thing", "description": {}}'},
            "has format version 99, this jkoflow reads 1 and 2; load it with the jkoflow release that wrote it",
        ),
        ({"jkoflow": '{"kind": "thing", "description": {}}'}, "has format version None, this jkoflow reads 1 and 2"),
        (
            {"jkoflow": '{"format_version": 1, "kind": "other", "description": {}}'},
            "holds a other, expected a thing",
        ),
    ],
)
def test_foreign_headers(tmp_path, header, message):
    write_raw(tmp_path / "file", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path / "file", "thing")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "file"
    checkpoint.save(path, "thing", {"a": torch.ones(2)}, {})

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(type(error)):
            checkpoint.save(path, "thing", {"a": torch.zeros(2)}, {})
    assert torch.equal(checkpoint.load(path, "thing")[0]["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    checkpoint.save(path, "thing", {"a": torch.ones(2)}, {})
    code = f"""
import os, signal, torch
from jkoflow import checkpoint
os.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save({str(path)!r}, "thing", {{"a": torch.zeros(2)}}, {{}})
"""
    here = Path(checkpoint.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=here).returncode == -signal.SIGKILL
    assert torch.equal(checkpoint.load(path, "thing")[0]["a"], torch.ones(2))


def test_unwritable_folder(tmp_path):
    with pytest.raises(OSError, match="absent"):
        checkpoint.save(tmp_path / "absent" / "file", "thing", {}, {})


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "file", "thing", {}, {})
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "file"
    checkpoint.save(path, "thing", {"t": torch.randn(100)}, {})
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # in the numbers: safetensors itself notices damage only in its header
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        checkpoint.load(path, "thing")
