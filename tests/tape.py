"""What a CUDA graph promises, on the CPU: kernels noted once, repeated on the same
memory, with every Python value frozen at its first sight."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that make the host wait for the device, or copy from the host: a capture
# fails on each of them
HOST = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.bincount.default,
}


class Tape(TorchDispatchMode):
    """Notes kernels, and what their outside tensors held before."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        assert kernel not in HOST, kernel
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            self._note(tensor.untyped_storage())
        result = kernel(*args, **kwargs)
        self.made |= {t.untyped_storage().data_ptr() for t in tensors(result)}
        self.calls.append((kernel, args, kwargs, result))
        return result

    def _note(self, storage):
        if storage.data_ptr() not in self.made | self.before.keys():
            self.before[storage.data_ptr()] = storage, storage.clone()

    def undo(self):
        for storage, copy in self.before.values():
            storage.copy_(copy)

    @torch.no_grad()
    def replay(self):
        for kernel, args, kwargs, result in self.calls:
            again = kernel(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)


class Tapes:
    """Stands where ``CudaGraphs`` stands; counts its recordings."""

    def __init__(self):
        self.recordings = []

    def warm_up(self, function):
        function()

    def record(self, function, generators):
        noise = [generator.get_state() for generator in generators]
        with Tape() as tape:
            function()
        tape.undo()
        for generator, state in zip(generators, noise, strict=True):
            generator.set_state(state)
        self.recordings.append(tape)
        return tape.replay


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
