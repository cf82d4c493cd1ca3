"""What torch.compile is told without its import is what its own functions say."""

import pytest
import torch

import jkoflow
from jkoflow.ops.compiler_marks import constant_result, uncompiled


def function():
    return 1


def other():
    return 1


def test_a_constant_result_is_marked_as_pytorch_marks_it():
    assert vars(constant_result(function)) == vars(torch.compiler.assume_constant_result(other))
    assert vars(function)


def test_what_is_not_to_be_compiled_is_run_as_it_is():
    compiled = []

    def double(x):
        compiled.append(torch.compiler.is_compiling())
        return 2 * x

    marked = uncompiled(double)
    graph = torch.compile(lambda x: marked(x + 1) + 1, backend="eager")
    assert graph(torch.ones(2)).tolist() == [5, 5]
    assert graph(torch.ones(2)).tolist() == [5, 5]
    assert marked(torch.ones(2)).tolist() == [2, 2]
    assert compiled == [False] * 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
def test_adaptive_steps_of_a_hypernet_compile_around_them():
    velocity, x = jkoflow.HyperMLP(2, hidden=(8,)), torch.randn(5, 2)

    def solved(x):
        return jkoflow.integrate(velocity, x, method="dopri5", rtol=1e-3, atol=1e-3).x

    torch.testing.assert_close(torch.compile(solved, backend="eager")(x), solved(x))
