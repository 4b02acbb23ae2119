"""Tensors that say they lie on cuda:0 and hold real values, on a build of PyTorch without CUDA.

A wrapper subclass carries the device through PyTorch's own C++ code: indexing, broadcasting and composite operations
take the ways they take on a GPU. Operations on such tensors come to `dispatch`; those that make one out of nothing come
to a fallback for the CUDA backend, which such a build leaves empty. Python's indexing asks for a device guard, which is
missing too: that of the meta device, which does nothing, is entered in its place.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretend_cuda import graphs, streams
from tests.pretend_cuda.counts import counted
from tests.pretend_cuda.streams import CUDA, Block, current_stream, extent, host_waits, lock

aten = torch.ops.aten
CPU = torch.device("cpu")
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_CUDA_GUARD, _META_GUARD, _GUARD_COUNT = 1, 14, 22  # of c10::DeviceType
_ALLOCATION = 512  # bytes that PyTorch's allocator rounds to
_MASKS = (torch.bool, torch.uint8)
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.lift_fresh}
# Their out= forms, which the composite ones call, resize a tensor, and a wrapper cannot be.
_MADE_WHOLE = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "tril_indices")


class PretendGenerator(torch._C.Generator):
    """A generator of the pretended GPU. It draws what one of the CPU draws."""

    def __new__(cls) -> "PretendGenerator":
        generator = super().__new__(cls, "cpu")
        nothing = torch.empty(0)
        with _Seen() as seen:
            nothing.uniform_(generator=generator)
        _generators.append(seen.generator)
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


class _Seen(TorchDispatchMode):
    """Keeps what operations see of a generator: an object of another class, and the same one as long as it is kept."""

    generator: Any = None

    def __torch_dispatch__(self, function: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.generator = kwargs["generator"]
        return function(*args, **kwargs)


_generators: list[torch._C.Generator] = []


class PretendTensor(Tensor):
    """inner: the values, on the CPU. block: the device memory it lies in, which its views share."""

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor, block: Block) -> "PretendTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
        )
        tensor.inner, tensor.block = inner, block
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with lock:
            return dispatch(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **options: Any) -> str:
        return f"{self.inner!r} on {CUDA}"


def dispatch(function: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that takes or makes tensors on the device."""
    if _is_composite(function):  # comes here whole in inference mode
        return function.decompose(*args, **kwargs)
    operation = function.overloadpacket
    if operation is aten._to_copy and kwargs.get("device", CUDA).type == "cpu":
        return _download(function, args[0], kwargs)
    if operation is aten.copy_ and isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
        return _copy_across(*args, **kwargs)
    leaves = tree_leaves((args, kwargs))
    _check_devices(function, args, leaves)
    if _reads(function, args):
        _host_reads(str(function))
    if kwargs.get("device") is not None and kwargs["device"].type != "cuda":  # made like one of the device
        return function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    return _compute(function, args, kwargs, leaves)


def _compute(function: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> Any:
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    written = {id(tensor) for tensor in _written(function, args, kwargs)}
    launches = not _is_view(function) and function.overloadpacket not in _NO_KERNEL
    if launches:
        current_stream().given += 1
        for tensor in tensors:
            tensor.block.touch(*extent(tensor.inner), id(tensor) in written)
        counted().launches[function.overloadpacket.__name__] += 1
    graphs.before(_inner(tensor) for tensor in tensors if id(tensor) in written)
    out = _on_cpu(function)(*inner_args, **inner_kwargs)
    graphs.record(function, inner_args, inner_kwargs, out)
    if written:
        for tensor in tensors:
            if tensor.inner.shape != tensor.shape or tensor.inner.stride() != tensor.stride():
                raise NotImplementedError(f"{function} changes the shape of a tensor in place")
        if "out" in kwargs:
            return kwargs["out"]
        return args[0] if len(written) == 1 else [arg for arg in args if id(arg) in written]
    return tree_map(lambda value: wrapped(value, tensors) if isinstance(value, Tensor) else value, out)


def wrapped(inner: Tensor, bases: Sequence[PretendTensor] = ()) -> PretendTensor:
    """`inner` as a tensor of the device: a view of one of the bases, or in memory of its own."""
    storage = inner.untyped_storage()
    for base in bases:
        if base.block.address == storage.data_ptr():
            with torch.inference_mode(base.is_inference()):  # as PyTorch's own views are
                return PretendTensor(inner, base.block)
    nbytes = -(-storage.nbytes() // _ALLOCATION) * _ALLOCATION
    return PretendTensor(inner, Block(storage.data_ptr(), nbytes, current_stream(), current_stream().given))


def _made(function: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """The backend's fallback: operations without a tensor of the device among their arguments."""
    with lock:
        generator = kwargs.get("generator")
        _check_devices(function, (), [generator])
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        out = function(*args, **{**kwargs, "device": CPU})
        if function.overloadpacket not in _NO_KERNEL:
            counted().launches[function.overloadpacket.__name__] += 1
        return wrapped(out)


def _download(function: OpOverload, source: PretendTensor, kwargs: dict[str, Any]) -> Tensor:
    _host_reads(str(function))
    source.block.touch(*extent(source.inner), False)
    return function(source.inner, **{**kwargs, "device": CPU}).clone()


def _copy_across(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Between host and device, either way: asynchronously where the host's memory is pinned and it is asked for."""
    host, device = (source, target) if isinstance(target, PretendTensor) else (target, source)
    assert isinstance(device, PretendTensor)
    stream, is_upload = current_stream(), device is target
    is_async = non_blocking and streams.timeline.is_pinned(host)
    if not is_async:
        _host_reads("aten.copy_")
    stream.given += 1
    device.block.touch(*extent(device.inner), is_upload)
    if is_upload and is_async and stream is streams.timeline.default:
        counted().uploads[streams.asker()] += 1
    streams.timeline.copied += host.nbytes
    values = source if is_upload else device.inner
    inner_target = device.inner if is_upload else target
    if graphs.is_capturing():
        graphs.before([inner_target])
        graphs.record(aten.copy_.default, (inner_target, values), {}, inner_target)
    elif is_async:
        streams.timeline.copy_later(inner_target, values, host)
        return target
    inner_target.copy_(values)
    return target


def _host_reads(what: str) -> None:
    graphs.refuse(what)
    host_waits()


def _reads(function: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the host has to know a result, its shape, or values that lie in its own pageable memory."""
    if function.overloadpacket in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in _MASKS or not isinstance(index, PretendTensor) for index in indices)
    if function.overloadpacket is aten._grouped_mm:
        return torch.cuda.get_device_capability()[0] not in (9, 10)
    return not _READS.isdisjoint(function.tags)


def _check_devices(function: OpOverload, args: tuple[Any, ...], leaves: list[Any]) -> None:
    """What CUDA refuses: tensors of both sides, numbers apart, and generators of the CPU."""
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, PretendTensor)]
    if any(other.dim() for other in others) and function.overloadpacket not in _INDEXING:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {CUDA} and "
            f"{others[0].device}! (in {function})"
        )
    for leaf in leaves:
        if isinstance(leaf, torch._C.Generator) and not any(leaf is own for own in _generators):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{leaf.device.type}'")


def _written(function: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    written = []
    for place, argument in enumerate(function._schema.arguments):
        if argument.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, PretendTensor)]
    return written


@cache
def _is_composite(function: OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


def _is_view(function: OpOverload) -> bool:
    return function.is_view or function.overloadpacket in (aten._unsafe_view, aten._reshape_alias)


def _inner(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _on_cpu(function: OpOverload) -> Callable[..., Any]:
    """The operation, or what stands in for one that a CPU has for floating point alone."""
    if function is aten.histc.default:
        return lambda values, *args, **kwargs: function(values.double(), *args, **kwargs).to(values.dtype)
    return function


def install() -> Callable[[], None]:
    """Let PyTorch make tensors on "cuda". Call what is returned to have it as before."""
    libraries = [torch.library.Library("_", "IMPL", "CUDA"), torch.library.Library("aten", "IMPL", "CUDA")]
    libraries[0].fallback(_made)
    for name in _MADE_WHOLE:
        overload = getattr(getattr(aten, name.partition(".")[0]), name.partition(".")[2] or "default")
        libraries[1].impl(name, lambda *args, overload=overload, **kwargs: _made(overload, *args, **kwargs))
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
    guards = (ctypes.c_void_p * _GUARD_COUNT).in_dll(library, _GUARDS)
    guards[_CUDA_GUARD] = guards[_META_GUARD]

    def remove() -> None:
        guards[_CUDA_GUARD] = None
        for library in libraries:
            library._destroy()
        _generators.clear()

    return remove
