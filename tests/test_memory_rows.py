"""The kernels in which every row has its own time follow nothing out of their memory: tensors, times, recorded steps.

`make sanitize` runs this file on an extension under AddressSanitizer, too.
"""

import os

import pytest
import torch

from jkoflow.ops import library, native
from jkoflow.ops.grid import Adaptive, Fixed
from test_memory import OPERATORS, WRONG_SLOTS, X, expect_report, operator_arguments, refused, run_operator

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

ROW_OPERATORS = ("evaluate", "evaluate_backward", "integrate_adaptive", "integrate_adaptive_backward")
OUTPUT_TIMES = torch.tensor([0.25, 0.5], dtype=torch.float64)


def row_arguments(operator, divergence="exact", context_dim=0):
    """The arguments of an operator in which every row has its own time, by name and in their order."""
    adaptive = operator.startswith("integrate_adaptive")
    grid, method = (Adaptive(1e-3, 1e-3, 100), "dopri5") if adaptive else (Fixed(1), "euler")
    tensors, text = operator_arguments(divergence, context_dim, grid=grid, method=method)
    given = {"x": tensors.pop("x")} | ({} if adaptive else {"times": torch.linspace(0, 1, 4)}) | tensors
    given["settings"] = text
    if operator == "evaluate_backward":
        given |= {"x_bar": torch.ones(4, 3), "divergence_bar": torch.ones(4), "wanted": True}
    if operator == "integrate_adaptive":
        given |= {"output_times": OUTPUT_TIMES, "record": True}
    if operator == "integrate_adaptive_backward":
        *_, last_step, records = torch.ops.jkoflow.integrate_adaptive(*given.values(), OUTPUT_TIMES, True)
        given |= {"output_times": OUTPUT_TIMES, "last_step": last_step, "records": records}
        given |= {"x_bar": torch.ones(4, 3), "logdet_bar": torch.ones(4)}
        given |= {"x_outputs_bar": torch.ones(2, 4, 3), "logdet_outputs_bar": torch.ones(2, 4), "wanted": True}
    return given


def run_rows(operator, arguments, **changes):
    return getattr(torch.ops.jkoflow, operator)(*(arguments | changes).values())


@pytest.mark.parametrize("name", WRONG_SLOTS)
@pytest.mark.parametrize("operator", ROW_OPERATORS)
def test_operators_of_rows_refuse_what_does_not_fit(operator, name):
    arguments = row_arguments(operator)
    run_rows(operator, arguments)
    with pytest.raises((ValueError, RuntimeError, TypeError, IndexError)):
        run_rows(operator, arguments, **WRONG_SLOTS[name])


@pytest.mark.parametrize("operator", ROW_OPERATORS)
def test_operators_of_rows_refuse_a_probe_or_context_that_does_not_fit(operator):
    arguments = row_arguments(operator, "hutchinson", 2)
    run_rows(operator, arguments)
    for name, value in (
        ("noise", None),
        ("noise", torch.zeros(1, 3)),
        ("noise", X.double()),
        ("context", None),
        ("context", torch.zeros(4, 1)),
        ("context", torch.zeros(4, 2).double()),
    ):
        with pytest.raises((ValueError, IndexError)):
            run_rows(operator, arguments, **{name: value})


@pytest.mark.parametrize(
    "times", [None, torch.zeros(3), torch.zeros(5), torch.zeros(4).double(), torch.zeros(4, 2), torch.zeros(())]
)
@pytest.mark.parametrize("operator", ["evaluate", "evaluate_backward"])
def test_evaluations_refuse_times_that_do_not_fit(operator, times):
    with refused("times must"):
        run_rows(operator, row_arguments(operator), times=times)


@pytest.mark.parametrize("operator", ["evaluate", "evaluate_backward"])
@pytest.mark.parametrize("grid", [Fixed(3), Adaptive()])
def test_evaluations_refuse_steps(operator, grid):
    text = library.encode(native.Settings("exact", True, "tanh", 0.0, 1.0, grid, "dopri5"))
    with refused("method must be 'euler'"):
        run_rows(operator, row_arguments(operator), settings=text)


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_of_equal_steps_refuse_adaptive_ones(operator):
    tensors, text = operator_arguments(grid=Adaptive(), method="dopri5")
    with refused("grid must have equal steps"):
        run_operator(operator, tensors, text)


@pytest.mark.parametrize("operator", ["integrate_adaptive", "integrate_adaptive_backward"])
def test_adaptive_steps_refuse_equal_ones(operator):
    text = library.encode(native.Settings("exact", True, "tanh", 0.0, 1.0, Fixed(3), "dopri5"))
    with refused("grid must be adaptive"):
        run_rows(operator, row_arguments(operator), settings=text)


def resized(tensor, size):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(size)
    return tensor


WRONG_OUTPUT_TIMES = {
    "float32": OUTPUT_TIMES.float(),
    "integers of as many bytes": torch.zeros(2, dtype=torch.int64),
    "a number": torch.tensor(0.5, dtype=torch.float64),
    "two axes": torch.full((2, 3), 0.5, dtype=torch.float64),
    "a column": OUTPUT_TIMES.view(2, 1),
    "many of none": torch.zeros(1000, 0, dtype=torch.float64),
    "memory taken away": resized(OUTPUT_TIMES, 0),
    "not in order": OUTPUT_TIMES.flip(0),
    "before the start": OUTPUT_TIMES - 0.25,
    "after the end": OUTPUT_TIMES + 0.5,
    "no numbers": OUTPUT_TIMES * float("nan"),
}


@pytest.mark.parametrize("name", WRONG_OUTPUT_TIMES)
@pytest.mark.parametrize("operator", ["integrate_adaptive", "integrate_adaptive_backward"])
def test_adaptive_steps_refuse_output_times_that_do_not_fit(operator, name):
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        run_rows(operator, row_arguments(operator), output_times=WRONG_OUTPUT_TIMES[name])


def damaged(column, value):
    """Sets a member of the last step's record, in words of 8 bytes."""

    def damage(arguments):
        arguments["records"][-1, column] = value

    return damage


def outputs_set(first, end):
    """Sets the outputs that the last step's record says to be within it."""

    def damage(arguments):
        arguments["records"][-1, 3:4].view(torch.int32).copy_(torch.tensor([first, end], dtype=torch.int32))

    return damage


def replaced_by(**makers):
    """Replaces arguments by what is made of them."""

    def damage(arguments):
        for name, make in makers.items():
            arguments[name] = make(arguments[name])

    return damage


DAMAGE = {
    "a step that is not there": damaged(2, 10**6),
    "a step that follows": damaged(2, 10**9),
    "a step that is its own": lambda a: damaged(2, len(a["records"]) - 1)(a),
    "a step before all": damaged(2, -2),
    "the smallest number of a step": damaged(2, -(2**63)),
    "outputs before all": outputs_set(-1, 0),
    "outputs far before all": outputs_set(-(2**31), 2),
    "outputs after all": outputs_set(2, 3),
    "outputs far after all": outputs_set(0, 2**31 - 1),
    "outputs that end before they begin": outputs_set(2, 1),
    "fewer output times": replaced_by(
        output_times=lambda times: times[:1],
        x_outputs_bar=lambda bar: bar[:1],
        logdet_outputs_bar=lambda bar: bar[:1],
    ),
    "no output times": replaced_by(
        output_times=lambda times: times[:0],
        x_outputs_bar=lambda bar: bar[:0],
        logdet_outputs_bar=lambda bar: bar[:0],
    ),
    "a last step that is not there": replaced_by(last_step=lambda last: last + 10**6),
    "no last step": replaced_by(last_step=lambda last: torch.full_like(last, -1)),
    "a last step before all": replaced_by(last_step=lambda last: last - 10**6),
    "fewer last steps": replaced_by(last_step=lambda last: last[:3]),
    "last steps of 4 bytes": replaced_by(last_step=torch.Tensor.int),
    "last steps as numbers": replaced_by(last_step=torch.Tensor.double),
    "last steps taken away": replaced_by(last_step=lambda last: resized(last, 8)),
    "no records": replaced_by(records=lambda records: records[:0]),
    "fewer records": replaced_by(records=lambda records: records[:-1]),
    "short records": replaced_by(records=lambda records: records[:, :-1]),
    "records of three axes": replaced_by(records=lambda records: records.view(len(records), 3, 2)),
    "records of one axis": replaced_by(records=torch.Tensor.flatten),
    "records as numbers": replaced_by(records=torch.Tensor.double),
    "records taken away": replaced_by(records=lambda records: resized(records, 64)),
    "a gradient of other rows": replaced_by(x_bar=lambda bar: bar[:1]),
    "a gradient of other numbers": replaced_by(logdet_bar=torch.Tensor.double),
    "a gradient of other outputs": replaced_by(x_outputs_bar=lambda bar: bar[:1]),
    "a gradient of more outputs": replaced_by(logdet_outputs_bar=lambda bar: bar.repeat(2, 1)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_adjoint_of_adaptive_steps_follows_nothing_out_of_its_memory(name):
    arguments = row_arguments("integrate_adaptive_backward")
    assert arguments["records"].shape[1] == 6  # what "three axes" divides
    DAMAGE[name](arguments)
    with refused("records must|last_step must|must hold|must lie within its memory"):
        run_rows("integrate_adaptive_backward", arguments)


def test_numbers_of_steps_that_are_damaged_are_no_places():
    """Times, step sizes and positions may be any: gradients are then no numbers, and nothing else happens."""
    arguments = row_arguments("integrate_adaptive_backward")
    for column in (0, 1, 4):
        for value in (-1, 0, 2**63 - 1, -(2**63)):  # NaN, zero, NaN, -0
            records = arguments["records"].clone()
            records[:, column] = value
            gradient = run_rows("integrate_adaptive_backward", arguments, records=records)[0]
            assert gradient.shape == X.shape


def test_bits_that_flip_in_records_are_refused_or_harmless():
    arguments = row_arguments("integrate_adaptive_backward")
    records, last_step = arguments["records"], arguments["last_step"]
    generator = torch.Generator().manual_seed(1)
    outcomes = set()
    for _ in range(300):
        flipped, last = records.clone(), last_step.clone()
        target = flipped.view(-1) if torch.rand((), generator=generator) < 0.8 else last
        at, bit = (int(torch.randint(most, (), generator=generator)) for most in (len(target), 64))
        target[at] ^= (1 << bit) - (1 << 64 if bit == 63 else 0)
        try:
            run_rows("integrate_adaptive_backward", arguments, records=flipped, last_step=last)
            outcomes.add("harmless")
        except ValueError as refusal:
            outcomes.add(str(refusal).split(",")[0])
    assert outcomes == {"harmless", "records must be those of the forward pass"}


UNCHECKED_RECORDS = """
import torch, jkoflow
from jkoflow.ops import native_rows
native_rows._check_records = lambda *given: None
x = torch.zeros(4, 3, requires_grad=True)
result = jkoflow.integrate(jkoflow.MLPVelocity(3, (16, 12)), x, method="dopri5")
saved = result.x.grad_fn.saved_tensors
saved[-2].data.fill_(len(saved[-1]))  # the place behind the last record
result.x.sum().backward()
"""


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="make sanitize runs this")
def test_the_sanitizer_sees_what_the_checks_of_records_keep_from_the_kernels():
    expect_report(UNCHECKED_RECORDS, "AddressSanitizer: heap-buffer-overflow")
