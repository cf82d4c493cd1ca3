"""No file that is loaded runs code: pickles planted in files of every kind, wherever the kind has room for them."""

import base64
import gzip
import io
import os
import pickle
import shutil
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig
from jkoflow.checkpoint import CheckpointError
from jkoflow.data import DataError, read_table
from jkoflow.data.benchmarks import read_benchmark
from jkoflow.data.idx import read_idx
from jkoflow.report import write_report
from kinds_of_files import write_every_kind

pyarrow = pytest.importorskip("pyarrow")
h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")


class Trap:
    """What makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


FOUND = []
"""What has been looked up by any unpickler since the list was last cleared, for as long as a test watches."""
watching = False


def _note(event, arguments):
    if watching and event == "pickle.find_class":
        FOUND.append(arguments)


sys.addaudithook(_note)  # for the whole process, which is why there is a switch


@pytest.fixture
def trap(tmp_path):
    """The bytes of a pickle; no test may leave with what they make, or with anything unpickled."""
    global watching
    place = tmp_path / "sprung"
    FOUND.clear()
    watching = True
    yield Trap(place)
    watching = False
    assert not place.exists()
    assert FOUND == []


def refuses_or_reads(read, path):
    """Reads a file to numbers, or to an error of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
            told = ""
        except (DataError, CheckpointError) as error:
            told = str(error)
    assert "\n" not in told


def everywhere(content, trap):
    """A file with a pickle in its place, before it, behind it and in its middle; and what torch.save makes of it."""
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        planted = pickle.dumps(trap, protocol)
        middle = len(content) // 2
        yield from (planted, planted + content, content + planted, content[:middle] + planted + content[middle:])
    for zipped in (True, False):
        packed = io.BytesIO()
        torch.save({"rows": trap}, packed, _use_new_zipfile_serialization=zipped)
        yield packed.getvalue()


def test_a_trap_springs(tmp_path):
    """The test of the tests: what is planted works."""
    global watching
    watching = True
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    watching = False
    assert (tmp_path / "sprung").is_dir()
    assert FOUND
    FOUND.clear()


def test_in_and_around_tables_of_every_kind(tmp_path, trap):
    write_every_kind(tmp_path)
    for path in sorted(path for path in tmp_path.iterdir() if path.name.startswith(("t.", "old.", "new."))):
        for content in everywhere(path.read_bytes(), trap):
            path.write_bytes(content)
            refuses_or_reads(read_table, path)


def test_as_objects_of_numpy(tmp_path, trap):
    objects = np.array([[1.0, trap], [2.0, trap]], object)
    np.save(tmp_path / "t.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "t.npz", rows=objects)
    with zipfile.ZipFile(tmp_path / "packed.npz", "w") as archive:
        archive.writestr("rows.npy", (tmp_path / "t.npy").read_bytes())
        archive.writestr("rows.pkl", pickle.dumps(trap))
        archive.writestr("data.pkl", pickle.dumps(trap))
    for name in ("t.npy", "t.npz", "packed.npz"):
        with pytest.raises(DataError):
            read_table(tmp_path / name)


def test_in_cells_and_metadata_of_arrow(tmp_path, trap):
    planted = pickle.dumps(trap)
    rows = {"a": np.random.default_rng(0).normal(size=40), "b": [planted] * 40}
    table = pyarrow.table(rows)
    # Releases of pyarrow before 14.0.1 unpickled the metadata of this extension (CVE-2023-47248).
    field = pyarrow.field("b", pyarrow.binary()).with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": planted}
    )
    extended = table.cast(pyarrow.schema([table.field("a"), field]))
    for number, planted_in in enumerate((table, extended, table.replace_schema_metadata({b"pandas": planted}))):
        pyarrow.parquet.write_table(planted_in, tmp_path / f"t{number}.parquet")
        pyarrow.feather.write_feather(planted_in, tmp_path / f"t{number}.arrow", compression="uncompressed")
        for suffix in (".parquet", ".arrow"):
            refuses_or_reads(read_table, tmp_path / f"t{number}{suffix}")


def test_in_hdf5_matlab_and_text(tmp_path, trap):
    rows, planted = np.random.default_rng(0).normal(size=(40, 3)), pickle.dumps(trap)
    with h5py.File(tmp_path / "t.mat", "w") as file:
        file["X"] = rows
        file["X"].attrs["pickle"] = np.void(planted)
        file["object"] = np.void(planted)
    scipy_io.savemat(tmp_path / "u.mat", {"X": rows, "object": np.frombuffer(planted, np.uint8), "text": str(planted)})
    texts = [pickle.dumps(trap, 0).decode(), base64.b64encode(planted).decode()]
    pd.DataFrame({"a": rows[:, 0], "b": texts * 20}).to_csv(tmp_path / "t.csv")
    for name in ("t.mat", "u.mat", "t.csv"):
        refuses_or_reads(read_table, tmp_path / name)


def test_in_pictures_and_files_of_the_benchmark(tmp_path, trap):
    picture = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (5, 4, 4)) + bytes(80)
    for name, packed in (("train-images-idx3-ubyte", lambda each: each), ("t-idx3-ubyte.gz", gzip.compress)):
        for content in everywhere(picture, trap):
            (tmp_path / name).write_bytes(packed(content))
            refuses_or_reads(read_idx, tmp_path / name)
    files = {"power": "data.npy", "miniboone": "data.npy", "gas": "ethylene_CO.txt", "bsds300": "BSDS300.hdf5"}
    for name, file in {**files, "hepmass": "1000_train.csv"}.items():
        for content in everywhere(b"", trap):
            (tmp_path / file).write_bytes(content)
            refuses_or_reads(lambda folder, name=name: read_benchmark(name, folder), tmp_path)
    (tmp_path / "ethylene_CO.pickle").write_bytes(pickle.dumps(trap))  # as others keep that set
    refuses_or_reads(lambda folder: read_benchmark("gas", folder), tmp_path)


def small_flow():
    return JKOFlow(2, [Block(MLPVelocity(2, (3,)), num_steps=2, jko_step=0.5, movement=0.2)], eval_num_steps=4)


def test_in_models(tmp_path, trap):
    path = tmp_path / "flow.safetensors"
    small_flow().save(path)
    content = path.read_bytes()
    for planted in everywhere(content, trap):
        path.write_bytes(planted)
        refuses_or_reads(jkoflow.load, path)
    path.write_bytes(content)
    tensors = safetensors.torch.load_file(path)
    text = base64.b64encode(pickle.dumps(trap)).decode()
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "pickle": text, "description": text})
    refuses_or_reads(jkoflow.load, path)


def test_in_every_file_of_a_run(tmp_path, trap):
    rows, config = torch.randn(200, 2), TrainConfig(hidden=(3,), max_blocks=1, iterations_per_block=2, batch_size=32)
    jkoflow.train(rows, config, run_dir=tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_file())
    assert {"model.safetensors", "config.toml", "history.jsonl", "environment.json", "metrics.json"} <= set(names)
    for name in names:
        for content in list(everywhere((tmp_path / "whole" / name).read_bytes(), trap))[:4]:
            run = tmp_path / "run"
            shutil.copytree(tmp_path / "whole", run)
            (run / name).write_bytes(content)
            refuses_or_reads(write_report, run)
            refuses_or_reads(lambda run: jkoflow.train(rows, config, run_dir=run, resume=True), run)
            shutil.rmtree(run)
