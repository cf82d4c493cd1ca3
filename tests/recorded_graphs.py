"""A stand-in for CUDA graphs on the CPU: what a run does to tensors is recorded, undone, and done again by a replay."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}
"""Operators that wait for a GPU."""

UNCAPTURABLE = WAITING | {"linalg_qr", "geqrf", "linalg_eigh", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex"}
"""Operators that no capture stands."""

UNSEEN = {"detach", "lift_fresh", "alias", "as_strided", "slice", "select", "view", "unbind", "split"}
"""Operators that launch nothing."""


def name_of(operator):
    return operator._schema.name.split("::")[1]


class Launches(TorchDispatchMode):
    """Notes the operators that a device would be given, and refuses those that wait for it."""

    def __init__(self, refused=frozenset(WAITING)):
        super().__init__()
        self.names, self._refused = [], refused

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = name_of(operator)
        if name in self._refused:
            raise RuntimeError(f"operation not permitted: {name}")
        if name not in UNSEEN:
            self.names.append(name)
        return operator(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self._before, self._own = {}, set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if name_of(operator) in UNCAPTURABLE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name_of(operator)}\nand more")
        kwargs = kwargs or {}
        self._keep(operator, args, kwargs)
        result = operator(*args, **kwargs)
        given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        self._own |= {_memory(tensor) for tensor in _tensors(result)} - given
        self.calls.append((operator, args, kwargs, result))  # alive, so that no memory is used for another tensor
        return result

    def _keep(self, operator, args, kwargs):
        """Keeps what the operator is about to overwrite of memory that is older than the capture."""
        named = dict(zip([argument.name for argument in operator._schema.arguments], args, strict=False)) | kwargs
        for argument in operator._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in _tensors(named.get(argument.name)):
                memory = tensor.untyped_storage()
                if memory.data_ptr() not in self._own and memory.data_ptr() not in self._before:
                    self._before[memory.data_ptr()] = memory, memory.clone()

    def undo(self):
        for memory, before in self._before.values():
            memory.copy_(before)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


class RecordedGraphs:
    """What `jkoflow.training.captured.CudaGraphs` is for a GPU."""

    def __init__(self):
        self.captures = self.replays = self.beside_runs = 0

    def beside(self, run):
        self.beside_runs += 1
        return run()

    def capture(self, run):
        with _Recorder() as recorder:
            result = run()
        recorder.undo()
        self.captures += 1

        @torch.no_grad()
        def replay():
            self.replays += 1
            with torch.utils._python_dispatch._disable_current_modes():  # one launch, whatever it does
                for operator, args, kwargs, old in recorder.calls:
                    new = operator(*args, **kwargs)
                    for there, computed in zip(_tensors(old), _tensors(new), strict=True):
                        if _memory(there) != _memory(computed):
                            there.copy_(computed)

        return replay, result
