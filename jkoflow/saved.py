"""Models that are saved as one safetensors file, and pickled by the bytes of that file."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from jkoflow import checkpoint
from jkoflow.checkpoint import CheckpointError
from jkoflow.restore import check_numbers, described, restored

MODEL_FILE = "model.safetensors"
"""Name of the model's file in the directory of a run."""

PICKLE = "the pickled flow"
"""What errors call bytes that are unpickled."""

OWN = ("jkoflow.", "torch.")
"""Beginnings of the names of modules whose classes a file can name."""

TENSORS = ("_parameters", "_buffers", "_modules", "training")
"""Attributes of a module that are compared by its state, or kept beside it."""


class Saved(nn.Module, ABC):
    """The base of models that have a file.

    A pickle holds the bytes of the file, so that unpickling runs the checks of `load` and no code from the pickle but
    that; ``torch.save``, joblib, multiprocessing and a DataLoader's workers go by it. The flow comes back on the CPU,
    whatever device it was on, with the class, numbers and dtype it had, and with what was in training and what asked
    for gradients; it shares no tensor with what is pickled beside it, such as an optimizer.

    What a file cannot say keeps PyTorch's own pickle: velocities of classes of your own, hooks and further attributes,
    parametrized layers, tensors that several blocks share or that lie in shared memory, and other dtypes than float32
    and float64. Copies by `copy` are PyTorch's own in any case, on the same device.
    """

    KIND: ClassVar[str]
    """Kind of the content of a file, one of `jkoflow.checkpoint.MODELS`."""

    WHAT: ClassVar[str]
    """What errors call the content."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the model without its numbers, as JSON values; `from_description` builds it again."""

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a model from what `describe` returned; its numbers are still to be loaded."""

    def save(self, path: str | Path) -> None:
        """Writes the flow into one safetensors file, atomically.

        Raises:
            OSError: If the file cannot be written.
        """
        checkpoint.save(path, self.KIND, self.state_dict(), self.describe())

    @classmethod
    @torch.inference_mode(False)  # whatever mode the caller is in: what it would return in that one has no gradients
    def load(cls, path: str | Path) -> Self:
        """Reads a flow, on the CPU, from the file that `save` wrote or from a run directory.

        It is as `jkoflow.train` returns it: in evaluation mode, and its parameters need no gradient, so that densities
        and samples keep no graph. To train it by other means than `jkoflow.train`, call ``flow.requires_grad_()``.

        Raises:
            jkoflow.checkpoint.CheckpointError: If the file is missing, damaged or of an unknown version.
        """
        path = Path(path)
        path = path / MODEL_FILE if path.is_dir() else path
        return cls._restored(path, *checkpoint.load(path, cls.KIND))

    @classmethod
    def _restored(cls, source: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Self:
        with described(source, cls.WHAT):
            found = restored(lambda: cls.from_description(description), tensors)
        return found.requires_grad_(False).eval()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Returns the bytes of the file and what is not in it, or PyTorch's own pickle, see the class.

        Raises:
            jkoflow.checkpoint.CheckpointError: If the flow has numbers that `load` would refuse, such as NaN.
        """
        if not self._is_in_file():
            return super().__reduce_ex__(protocol)
        with described(PICKLE, self.WHAT):
            check_numbers(self)
        flags = {
            "training": [name for name, module in self.named_modules() if module.training],
            "requires_grad": [name for name, parameter in self.named_parameters() if parameter.requires_grad],
        }
        payload = checkpoint.packed(self.KIND, self.state_dict(), self.describe())
        return _unpickled, (type(self), payload, flags)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__setstate__(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__dict__, memo))
        return new

    def _is_in_file(self) -> bool:
        """Tells whether the file says all of the model: built again, it has the same parts with the same tensors."""
        if not all(part is self or type(part).__module__.startswith(OWN) for part in self.modules()):
            return False
        tensors = self.state_dict()
        places = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
        in_memory = [tensor for tensor in tensors.values() if tensor.device.type == "cpu"]
        if len(set(places)) < len(places) or any(tensor.is_shared() for tensor in in_memory):
            return False
        try:
            text = json.dumps(self.describe())
            with torch.device("meta"):
                again = self.from_description(json.loads(text))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False
        shapes, others = ({name: (t.shape, t.dtype) for name, t in m.state_dict().items()} for m in (self, again))
        return shapes == others and json.dumps(again.describe()) == text and _are_alike(self, again)


def _are_alike(model: nn.Module, again: nn.Module) -> bool:
    """Tells whether two models have the same parts, and the first no attributes or hooks that the other has not."""
    parts, others = dict(model.named_modules()), dict(again.named_modules())
    if {name: type(part) for name, part in parts.items()} != {name: type(part) for name, part in others.items()}:
        return False
    for name, part in parts.items():
        known = others[name].__getstate__()
        for key, value in part.__getstate__().items():
            if key in TENSORS or (key in known and not _is_plain(value)):
                continue
            if not _is_plain(value) or value != known.get(key, getattr(type(part), key, part)):
                return False
    return True


def _is_plain(value: Any) -> bool:
    """Tells whether a value is one that can be compared: numbers, names, and collections of them, such as hooks."""
    return isinstance(value, int | float | str | tuple | dict | None)


@torch.inference_mode(False)
def _unpickled(cls: type[Saved], payload: bytes, flags: Mapping[str, list[str]]) -> Saved:
    """Returns a model from the bytes of its file.

    Raises:
        CheckpointError: If they are damaged, or the flags are about parts that the model has not.
    """
    model = cls._restored(PICKLE, *checkpoint.unpacked(payload, cls.KIND, PICKLE))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    try:
        for name in flags["training"]:
            modules[name].training = True
        for name in flags["requires_grad"]:
            parameters[name].requires_grad_()
    except KeyError as error:
        raise CheckpointError(f"{PICKLE} is damaged: the flow has no part {error}; pickle it again") from error
    return model
