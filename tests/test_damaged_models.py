"""A file of a model or a state loads to the numbers that were saved, or is refused in one line, without much memory."""

import json
import math
import resource
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, checkpoint
from jkoflow.checkpoint import CheckpointError
from jkoflow.images.autoencoder import Autoencoder, AutoencoderConfig
from jkoflow.initial_map import InitialMap
from jkoflow.training.progress import Silent
from jkoflow.training.run_directory import STATE_FILE, RunDirectory
from jkoflow.training.state import RunState
from soak import amount

SMALL = TrainConfig(hidden=(2,), max_blocks=1, iterations_per_block=4, batch_size=32)


def small_flow():
    rows = torch.randn(200, 2)
    blocks = [Block(MLPVelocity(2, (3,), linear=True), num_steps=4, jko_step=0.5, movement=0.2)]
    return JKOFlow(2, blocks, rows.mean(0), rows.std(0), 8, initial_map=InitialMap.fit(rows, "marginals+whiten+radial"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind."""
    place = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    small_flow().save(place / "flow")
    frame = pd.DataFrame({"kind": np.arange(300) % 3, "level": np.random.default_rng(0).normal(size=300)})
    jkoflow.train(frame, SMALL, columns={"kind": "category"}).save(place / "table-flow")
    Autoencoder(4, 4, 2, (1,)).save(place / "autoencoder", AutoencoderConfig(), 0)
    state = state_of_a_run(place / "run")
    shutil.copy(state, place / "training-state")
    return place


def state_of_a_run(path):
    """The state file of a run that was killed in its second block."""

    kept = RunDirectory.save_state

    def save(self, state):
        kept(self, state)
        if state.blocks and state.fit:
            raise KeyboardInterrupt

    config = TrainConfig(**{**SMALL.to_mapping(), "max_blocks": 2, "hidden": (2,), "save_seconds": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "save_state", save)
        with pytest.raises(KeyboardInterrupt):
            jkoflow.train(torch.randn(200, 2), config, run_dir=path)
    return path / STATE_FILE


def state(path):
    tensors, description = checkpoint.load(path, "training-state")
    return RunState.from_description(description, tensors)


def read(path, kind):
    """What a file holds, in a form that shows every difference: its description and all bits of its tensors."""
    if kind == "training-state":
        found = state(path)
        description, tensors = found.describe(), found.tensors()
    elif kind == "autoencoder":
        found = Autoencoder.load(path)
        description, tensors = [found.height, found.width, found.dim, found.channels], found.state_dict()
    else:
        found = jkoflow.load(path)
        flow = found if isinstance(found, JKOFlow) else found.flow
        description, tensors = flow.describe(), found.state_dict()
        if found is not flow:
            description = [description, found.schema.describe(), found.masses.describe(), found.frames, found.metrics]
    bits = {name: (str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
    return json.dumps(description), bits


KINDS = ["flow", "table-flow", "autoencoder", "training-state"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_gives_other_numbers(files, tmp_path, kind):
    content = bytearray((files / kind).read_bytes())
    header, whole = 8 + int.from_bytes(content[:8], "little"), read(files / kind, kind)
    path, refused = tmp_path / "file", 0
    every = amount(
        max(1, 8 * header // 1500), 1
    )  # all bits of the header, or evenly spread ones; and some in the numbers
    places = [*range(0, 8 * header, every), *range(8 * header, 8 * len(content), amount(1009, 101))]
    for place in places:
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = read(path, kind)
        except CheckpointError:
            refused += 1
        else:
            assert found == whole, f"bit {place % 8} of byte {place // 8}"
        content[place // 8] ^= 1 << place % 8
    assert refused > 0.95 * len(places)


def rewritten(source, target, change):
    """Writes a file again with a changed description and a right digest, as somebody who wants to deceive would."""
    with safetensors.safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["jkoflow"])
        del header["sha256"]
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(header["description"], tensors)
    metadata = {"jkoflow": checkpoint.signed(json.dumps(header), tensors)}
    safetensors.torch.save_file(tensors, target, metadata=metadata)
    return target


def put(*path):
    """A change that puts the last argument at a place of the description."""

    def change(description, tensors):
        at = description
        for step in path[:-2]:
            at = at[step]
        at[path[-2]] = path[-1]

    return change


def number(name, value):
    """A change of the first number of a tensor."""

    def change(description, tensors):
        tensors[name].view(-1)[0] = value

    return change


BLOCK = ("blocks", 0)
VELOCITY = (*BLOCK, "velocity")
WRONG = {
    "steps that never end": put("eval_num_steps", 10**9),
    "negative steps": put("eval_num_steps", -5),
    "no steps": put("eval_num_steps", 0),
    "steps in words": put(*BLOCK, "num_steps", "x"),
    "steps of a block that never end": put(*BLOCK, "num_steps", 2**30),
    "no time": put(*BLOCK, "t1", math.nan),
    "endless time": put(*BLOCK, "t1", math.inf),
    "a time in words": put(*BLOCK, "t0", "0"),
    "an unknown method": put(*BLOCK, "method", "foo"),
    "a negative JKO step": put(*BLOCK, "step_size", -1.0),
    "a negative movement": put(*BLOCK, "movement", -1.0),
    "an unknown activation": put(*VELOCITY, "activation", "relu7"),
    "wide layers": put(*VELOCITY, "hidden", [30000, 30000]),
    "many layers": put(*VELOCITY, "hidden", [4000] * 200),
    "no layers": put(*VELOCITY, "hidden", []),
    "much context": put(*VELOCITY, "context_dim", 3 * 10**8),
    "half a width": put(*VELOCITY, "hidden", [2.5]),
    "time in words": put(*VELOCITY, "time", "yes"),
    "many columns": put("dim", 5 * 10**8),
    "columns beyond all integers": put("dim", 10**30),
    "columns without end": put("dim", math.inf),
    "columns by truth": put("dim", True),
    "many knots": put("initial_map", 0, "knots", 3 * 10**8),
    "no map": put("initial_map", 0, "stage", "fold"),
    "half precision": put("dtype", "float16"),
    "no type": put("dtype", "nn"),
    "names that are none": put("features", [1, 2]),
    "more names than columns": put("features", ["a", "b", "c"]),
    "nothing": lambda description, tensors: description.clear(),
    "blocks of nothing": put("blocks", [None]),
    "NaN weights": number("blocks.0.velocity.layers.0.weight", math.nan),
    "infinite weights": number("blocks.0.velocity.layers.0.weight", math.inf),
    "a negative deviation": number("standardize.std", -1.0),
    "NaN knots": number("initial_map.stages.0.spline.x", math.nan),
    "a map without inverse": lambda description, tensors: tensors["initial_map.stages.1.root"].zero_(),
    "another type of numbers": lambda description, tensors: tensors.update(
        {"standardize.mean": tensors["standardize.mean"].to(torch.int32)}
    ),
    "a tensor more": lambda description, tensors: tensors.update(more=torch.ones(2)),
    "a tensor less": lambda description, tensors: tensors.pop("standardize.std"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_field_has_a_range(files, tmp_path, wrong):
    path = rewritten(files / "flow", tmp_path / "file", WRONG[wrong])
    with pytest.raises(CheckpointError) as caught:
        JKOFlow.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


HEAVY = """
import resource, sys, time, torch
from jkoflow import JKOFlow
from jkoflow.checkpoint import CheckpointError
for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        JKOFlow.load(path)
    except CheckpointError:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 50, (path, grown)
        assert time.process_time() - start < 20, path
    else:
        raise SystemExit(f"{path} was loaded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kB of ru_maxrss are Linux's")
def test_a_small_file_takes_little_memory(files, tmp_path):
    heavy = ("wide layers", "many layers", "much context", "many columns", "many knots")
    paths = [rewritten(files / "flow", tmp_path / name.replace(" ", "-"), WRONG[name]) for name in heavy]
    done = subprocess.run([sys.executable, "-c", HEAVY, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2e6


def header(text):
    """The text of a description within a header that is right otherwise."""
    return f'{{"format_version": 2, "kind": "flow", "description": {text}}}'


@pytest.mark.parametrize(
    "text",
    [
        header("[" * 100_000 + "]" * 100_000),
        header('{"dim": ' + "9" * 5000 + "}"),
        header('{"dim": Infinity}'),
        header('{"dim": NaN}'),
        header('{"dim": 2, "dim": 3}'),
        header('{"dim": 2'),
        '{"format_version": [2], "kind": "flow", "description": {}}',
        '{"format_version": true, "kind": "flow", "description": {}}',
    ],
    ids=["nested", "long", "infinite", "NaN", "twice", "open", "listed version", "true version"],
)
def test_odd_descriptions(tmp_path, text):
    tensors = {"a": torch.ones(2)}
    metadata = {"jkoflow": checkpoint.signed(text, tensors)}
    safetensors.torch.save_file(tensors, tmp_path / "file", metadata=metadata)
    for load in (JKOFlow.load, jkoflow.load):
        with pytest.raises(CheckpointError):
            load(tmp_path / "file")


def test_equal_models_are_equal_files(tmp_path):
    torch.manual_seed(1)
    small_flow().save(tmp_path / "a")
    torch.manual_seed(1)
    small_flow().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_state_may_hold_what_is_not_finite(tmp_path):
    """Settings may be infinite, and losses are what they are: a run must not end by saving them."""
    checkpoint.save(tmp_path / "file", "thing", {}, {"never": math.inf, "loss": math.nan})
    found = checkpoint.load(tmp_path / "file", "thing")[1]
    assert found["never"] == math.inf
    assert math.isnan(found["loss"])
    config = TrainConfig(**{**SMALL.to_mapping(), "jko_step_max": math.inf, "save_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        jkoflow.train(torch.randn(100, 2), config, run_dir=tmp_path / "run", progress=Stopping())
    assert RunDirectory(tmp_path / "run").load_state().settings["jko_step_max"] == math.inf


class Stopping(Silent):
    def update(self, block, iteration, terms):
        if iteration > 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [
        put("fit", "block", {"blocks": 3}),
        put("blocks", "two"),
        put("blocks", 0, "velocity", "hidden", [30000, 30000]),
        put("fit", "counters", {}),
        put("fit", "counters", "iteration", "many"),
        put("fit", "updates", None),
        number("fit.best", math.nan),
        number("blocks.0.velocity.layers.0.weight", math.nan),
        put("fingerprint", None),
        put("history_bytes", -1),
        put("elapsed", "long"),
        put("summaries", {}),
        put("guard_events", 0.5),
    ],
)
def test_states_of_wrong_values_are_refused(files, tmp_path, change):
    path = rewritten(files / "training-state", tmp_path / STATE_FILE, change)
    (tmp_path / "config.toml").touch()
    with pytest.raises(CheckpointError) as caught:
        RunDirectory(tmp_path).load_state()
    assert str(path) in str(caught.value)
