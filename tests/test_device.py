"""The device of a name, or why PyTorch cannot use it: an error of the user's, by its class."""

import pytest
import torch

from jkoflow import training
from jkoflow.environment import DeviceError, usable_device
from jkoflow.errors import UserError


def test_a_device_that_can_be_used():
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    assert training.usable_device is usable_device  # its place in version 0.1


@pytest.mark.parametrize("device", ["cuda:99", "toaster", torch.device("cuda", 99)])
def test_a_device_that_cannot_be_used(device):
    with pytest.raises(DeviceError, match="device must be one that PyTorch can use here, got") as caught:
        usable_device(device)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)
    assert f"got {str(device)!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)
