"""Tensors that say they lie on cuda:0 and hold real values, on a build of PyTorch without CUDA.

A wrapper subclass carries the device through PyTorch's own C++ code: indexing, broadcasting and composite operations
take the ways they take on a GPU. Operations on such tensors come to `dispatch`; those that make one out of nothing are
registered as kernels for CUDA. Python's indexing asks for CUDA's device guard, which is missing, too: that of the meta
device, which does nothing, is entered in its place.
"""

import ctypes
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_cuda import graphs, streams
from tests.pretend_cuda.counts import counted
from tests.pretend_cuda.streams import CUDA, Block, current_stream, host_waits, lock

aten = torch.ops.aten
CPU = torch.device("cpu")
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_CUDA_GUARD, _META_GUARD, _GUARD_COUNT = 1, 14, 22  # of c10::DeviceType
_ALLOCATION = 512  # bytes that PyTorch's allocator rounds to
_MASKS = (torch.bool, torch.uint8)
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_NO_KERNEL = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten.lift_fresh, aten._unsafe_view, aten._reshape_alias),
}
# All that make a tensor out of nothing come down to the first two, but for those whose own out= forms would resize it.
_MADE_HERE = (
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m"),
    *("linspace", "randperm", "randperm.generator", "tril_indices", "triu_indices"),
)


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


@dataclass(frozen=True)
class _Facts:
    """Of an operation. written: places and names of the arguments that it writes to. reads: the host has to know."""

    is_composite: bool
    launches: bool
    reads: bool
    written: tuple[tuple[int, str], ...]


@cache
def _facts(function: OpOverload) -> _Facts:
    packet, name = function.overloadpacket, "CompositeImplicitAutograd"
    return _Facts(
        is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), name),
        launches=not function.is_view and packet not in _NO_KERNEL,
        reads=packet not in _INDEXING and not _READS.isdisjoint(function.tags),
        written=tuple((i, arg.name) for i, arg in enumerate(function._schema.arguments) if arg.is_write),
    )


def dispatch(function: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that takes or makes tensors on the device."""
    operation, facts = function.overloadpacket, _facts(function)
    if facts.is_composite:  # comes here whole in inference mode
        return function.decompose(*args, **kwargs)
    if operation is aten._to_copy and kwargs.get("device", CUDA).type == "cpu":
        return _download(function, args[0], kwargs)
    if operation is aten.copy_ and isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
        return _copy_across(*args, **kwargs)
    leaves = [*leaves_of(args), *leaves_of(kwargs.values())]
    _check_devices(function, leaves)
    if facts.reads or _reads(function, args):
        _host_reads(str(function))
    if kwargs.get("device") is not None and kwargs["device"].type != "cuda":  # made like one of the device
        return function(*changed(args, _inner), **{name: changed(value, _inner) for name, value in kwargs.items()})
    return _compute(function, args, kwargs, [leaf for leaf in leaves if isinstance(leaf, PretendTensor)])


def _compute(function: OpOverload, args: Any, kwargs: dict[str, Any], tensors: list[PretendTensor]) -> Any:
    facts = _facts(function)
    inner_args = changed(args, _inner)
    inner_kwargs = {name: changed(value, _inner) for name, value in kwargs.items()}
    written = [args[place] if place < len(args) else kwargs.get(name) for place, name in facts.written]
    written_ids = {id(leaf) for leaf in leaves_of(written)}
    if facts.launches:
        current_stream().given += 1
        for tensor in tensors:
            tensor.block.touch(tensor.inner, id(tensor) in written_ids)
        counted().launches[function.overloadpacket.__name__] += 1
    graphs.used(tensor.block for tensor in tensors)
    graphs.before(tensor.inner for tensor in tensors if id(tensor) in written_ids)
    out = _on_cpu(function)(*inner_args, **inner_kwargs)
    graphs.record(function, inner_args, inner_kwargs, out)
    if not written:
        return changed(out, lambda value: wrapped(value, tensors) if isinstance(value, Tensor) else value)
    for tensor in tensors:
        if tensor.inner.shape != tensor.shape or tensor.inner.stride() != tensor.stride():
            raise NotImplementedError(f"{function} changes the shape of a tensor in place")
    return written[0] if len(written) == 1 else tuple(written)


def leaves_of(values: Iterable[Any]) -> Iterator[Any]:
    """What lists and tuples of arguments hold."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from leaves_of(value)
        else:
            yield value


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """An argument, or what lists and tuples of arguments hold, each changed."""
    if isinstance(value, list | tuple):
        return type(value)([changed(item, change) for item in value])
    return change(value)


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
    """The kernel of operations without a tensor of the device among their arguments."""
    with lock:
        _check_devices(function, [kwargs.get("generator")])
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        out = function(*args, **{**kwargs, "device": CPU})
        if function.overloadpacket not in _NO_KERNEL:
            counted().launches[function.overloadpacket.__name__] += 1
        return wrapped(out)


def _download(function: OpOverload, source: PretendTensor, kwargs: dict[str, Any]) -> Tensor:
    _host_reads(str(function))
    source.block.touch(source.inner, False)
    return function(source.inner, **{**kwargs, "device": CPU}).clone()


def _copy_across(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Between host and device, either way: asynchronously where the host's memory is pinned and it is asked for."""
    host, device = (source, target) if isinstance(target, PretendTensor) else (target, source)
    assert isinstance(device, PretendTensor)
    if not device.numel():
        return target
    stream, is_upload = current_stream(), device is target
    is_async = non_blocking and streams.timeline.is_pinned(host)
    if not is_async:
        _host_reads("aten.copy_")
    stream.given += 1
    device.block.touch(device.inner, is_upload)
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
    """Whether this call has the host wait: indexing by a mask or out of its own memory, and products by groups."""
    if function.overloadpacket in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in _MASKS or not isinstance(index, PretendTensor) for index in indices)
    if function.overloadpacket is aten._grouped_mm:
        return torch.cuda.get_device_capability()[0] not in (9, 10)
    return False


def _check_devices(function: OpOverload, leaves: list[Any]) -> None:
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


def _inner(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _on_cpu(function: OpOverload) -> Callable[..., Any]:
    """The operation, or what stands in for one that a CPU has for floating point alone."""
    if function is aten.histc.default:
        return lambda values, *args, **kwargs: function(values.double(), *args, **kwargs).to(values.dtype)
    return function


def _device_guards() -> ctypes.Array[ctypes.c_void_p]:
    """PyTorch's table of them. Skips the test where it is not found: Windows has another name for it."""
    try:
        library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
        return (ctypes.c_void_p * _GUARD_COUNT).in_dll(library, _GUARDS)
    except (StopIteration, OSError, ValueError):
        pytest.skip("PyTorch's table of device guards is not found, so no GPU can be pretended")


def install() -> Callable[[], None]:
    """Let PyTorch make tensors on "cuda". Call what is returned to have it as before."""
    guards = _device_guards()
    kernels = torch.library.Library("aten", "IMPL", "CUDA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a build for CUDA has kernels of its own
        for name in _MADE_HERE:
            packet, _, overload = name.partition(".")
            kernels.impl(name, partial(_made, getattr(getattr(aten, packet), overload or "default")))
    before, guards[_CUDA_GUARD] = guards[_CUDA_GUARD], guards[_META_GUARD]

    def remove() -> None:
        guards[_CUDA_GUARD] = before
        kernels._destroy()
        _generators.clear()

    return remove
