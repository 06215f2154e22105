"""A pretended CUDA device, for tests on machines that have none.

Within `pretended_cuda()`, tensors say that they are on `cuda:0` while their numbers lie on the CPU. So code takes its
CUDA paths, and what a GPU would refuse, or make the host wait for, is seen:

- **Placement.** A tensor is on a device if it was made or put there, or computed from such tensors. There may be
  several devices; `cuda` without a number is the current one (`torch.cuda.set_device`).
- **Mixing.** An operation on tensors of two devices is refused, but for copies, CPU tensors without a dimension, and
  CPU indices into a tensor on the device.
- **Generators.** Random numbers come from a generator of the tensor's own device, or the operation is refused.
- **Strides.** A fused Adam refuses gradients and moments that do not lie in memory as their parameter does.
- **Waits.** What makes the host wait for the device is noted with the functions that led there: copies between the two
  (unless they are `non_blocking` and from pinned memory), reading a value, results whose size depends on values, and
  `synchronize`.
- **Autocast** for CUDA is the CPU's, so that bfloat16 flows where it would.

What it cannot show: rounding, speed, memory (its counters say 1 byte), what a kernel itself demands, and an explicit
`device="cpu"` of an operation on tensors of the device, which is ignored.

It patches torch for the whole process, so use it in one of its own: `unlearnbench.run.workers.Workers` starts such.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
CPU = torch.device("cpu")
SEQUENCES = (
    list,
    tuple,
)  # `list | tuple` would be made anew for each of a million looks
FOLDERS = {"unlearnbench", "methods", "metrics"}  # whose functions a wait is traced to
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READS = {  # they end when the host knows a value
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip
REAL_GENERATOR, REAL_TENSOR, REAL_AUTOCAST = torch.Generator, torch.tensor, torch.autocast
REAL_TO, REAL_GROUPS = torch.Tensor.to, torch._C._group_tensors_by_device_and_dtype

_pretended: "PretendedCuda | None" = None  # what is in force in this process


class Wait(NamedTuple):
    """A moment at which the host waits for the device."""

    what: str
    path: tuple[str, ...]  # the project's functions on the stack, as `file.py:function`, the innermost first


def project_stack() -> tuple[str, ...]:
    """Return the project's functions on the stack, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        *folders, file = frame.f_code.co_filename.split("/")
        if FOLDERS & set(folders[-3:]) and "tests" not in folders[-3:]:
            found.append(f"{file}:{frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(found)


def _refuse(words: str) -> NoReturn:
    """Fail as torch does, and say where."""
    raise RuntimeError(f"{words} (in {' < '.join(project_stack()[:4]) or 'a test'})")


def _device() -> "PretendedCuda":
    """Return the pretended device that is in force."""
    if _pretended is None:
        raise RuntimeError("a tensor of a pretended device is used outside pretended_cuda()")
    return _pretended


# Tensors


class PretendedTensor(Tensor):
    """A tensor that says it is on a CUDA device. To torch's own code it is an empty shell on the CPU.

    Attributes:
        on_cpu: its numbers, a plain tensor.
        place: the device.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # results keep their own types

    on_cpu: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, data: Tensor, place: torch.device) -> "PretendedTensor":
        """Make a shell of the same sizes and strides."""
        return Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            layout=data.layout, device="cpu",
        )  # fmt: skip

    def __init__(self, data: Tensor, place: torch.device) -> None:
        self.on_cpu, self.place = data, place

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as the device does, where no mode asked it already."""
        return _device().__torch_dispatch__(func, types, args, kwargs)

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Change type and layout where the numbers are, then move them; torch would find the shell there already."""
        if args and isinstance(args[0], Tensor):
            place, dtype, layout = args[0].device, args[0].dtype, None
        else:
            place, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        changed: Tensor = self
        if layout is not None or dtype not in (None, self.dtype):
            form = {} if layout is None else {"memory_format": layout}
            changed = REAL_TO(self, dtype=dtype or self.dtype, **form)
        return changed if place is None or _device().resolve(place) == self.place else _Move.apply(changed, place)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return _Move.apply(self, CPU)

    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        where = project_stack()[:2]
        raise TypeError(f"can't convert {self.place} device type tensor to numpy: use Tensor.cpu() (in {where})")

    __array__ = numpy

    def tolist(self) -> Any:
        _device().wait("tolist")
        return self.on_cpu.detach().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            is_weight = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_weight else copied
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype}, {self.place})"


class _Move(torch.autograd.Function):
    """A copy on another device; its gradient goes back to where the tensor came from."""

    @staticmethod
    def forward(ctx: Any, x: PretendedTensor, place: torch.device) -> Tensor:
        ctx.origin, target = x.place, _device().resolve(place)
        if target.type == "cpu":
            _device().wait("copy to the host")
        return _put(x.on_cpu.detach().clone(), target)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _put(_plain(gradient).detach().clone(), ctx.origin), None


def _plain(x: Any) -> Any:
    """Return what holds the numbers."""
    return x.on_cpu if isinstance(x, PretendedTensor) else x


def _each(function: Callable[[Any], Any], x: Any) -> Any:
    """Return lists, tuples and dicts with a function's results in the place of what they hold."""
    if isinstance(x, SEQUENCES):
        return type(x)([_each(function, item) for item in x])
    if isinstance(x, dict):
        return {key: _each(function, item) for key, item in x.items()}
    return function(x)


def _leaves(x: Any) -> list[Any]:
    """Return what lists, tuples and dicts hold."""
    found, waiting = [], [x]
    while waiting:
        item = waiting.pop()
        if isinstance(item, SEQUENCES):
            waiting += reversed(item)
        elif isinstance(item, dict):
            waiting += reversed(item.values())
        else:
            found.append(item)
    return found


@functools.cache
def _aliases(func: Any) -> bool:
    """Say whether an operation returns one of its arguments, or a view of one."""
    return any(result.alias_info is not None for result in func._schema.returns)


def _put(x: Tensor, place: torch.device) -> Tensor:
    """Return a plain tensor as one of a device."""
    return PretendedTensor(x, place) if place.type == "cuda" else x


def _lies(x: Tensor) -> list[int]:
    """Return the strides that matter: of the dimensions that hold more than one element."""
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]


# The device


class PretendedCuda(TorchDispatchMode):
    """The pretended devices of a process: sees every operation, computes it on the CPU, and keeps the rules.

    Attributes:
        current: number of the device that `cuda` stands for.
        waits: of the host, in order.
        uploads: how many copies to a device nobody waited for.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.current = count, 0
        self.waits: list[Wait] = []
        self.uploads = 0

    def resolve(self, device: torch.device | str | int) -> torch.device:
        """Return a device with its number."""
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if found.type != "cuda":
            return found
        number = self.current if found.index is None else found.index
        if number >= self.count:
            _refuse(f"CUDA error: invalid device ordinal {number}")
        return torch.device("cuda", number)

    def wait(self, what: str) -> None:
        """Note that the host waits for the device."""
        self.waits.append(Wait(what, project_stack()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, or refuse it."""
        kwargs = dict(kwargs or {})
        leaves = _leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]
        asked = kwargs.get("device")
        target = None if asked is None else self.resolve(asked)
        here = bool(ours) or (target is not None and target.type == "cuda")
        self._check_generators(func, leaves, here)
        if not here:
            return func(*args, **kwargs)
        if target is not None and target.type == "meta":
            return func(*_each(_plain, args), **_each(_plain, kwargs))
        place = ours[0].place if ours else target  # what torch's own code does with shells stays: `to` moves them
        if ours:
            self._check_devices(func, args, leaves, ours)
        self._check_strides(func, args)
        self._note_waits(func, args, kwargs, place)
        out = self._compute(func, args, kwargs)
        if func is aten.copy_.default:
            return args[0]
        if place.type != "cuda":
            return out
        out = _each(lambda x: _put(x, place) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if ours and _aliases(func) else out

    @staticmethod
    def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what the operation makes of the plain tensors."""
        plain = _each(_plain, kwargs)
        plain.pop("pin_memory", None)
        if plain.get("device") is not None:
            plain["device"] = CPU
        return func(*_each(_plain, args), **plain)

    @staticmethod
    def _check_generators(func: Any, leaves: list[Any], here: bool) -> None:
        for generator in leaves:
            if isinstance(generator, REAL_GENERATOR) and (generator._cdata in CudaGenerator.known) != here:
                wanted, found = ("cuda", "cpu") if here else ("cpu", "cuda")
                _refuse(f"Expected a '{wanted}' device type for generator but found '{found}': {func.name()}")

    @staticmethod
    def _check_devices(func: Any, args: Any, leaves: list[Any], ours: list[PretendedTensor]) -> None:
        if func in COPIES:
            return
        strangers = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, PretendedTensor) and x.dim() > 0]
        if func in INDEXING:
            if not isinstance(args[0], PretendedTensor):
                _refuse(f"indices should be on the indexed tensor's device (cpu): {func.name()}")
            strangers = [x for x in strangers if not any(x is index for index in args[1])]
        if strangers or len({x.place for x in ours}) > 1:
            shapes = [tuple(x.shape) for x in strangers]
            _refuse(f"Expected all tensors to be on the same device: {func.name()}, CPU tensors of shape {shapes}")

    @staticmethod
    def _check_strides(func: Any, args: Any) -> None:
        if not func.name().startswith("aten::_fused_adam"):
            return
        for parameter, *others in zip(*args[:4], strict=True):
            if any(_lies(other) != _lies(parameter) for other in others):
                strides = [x.stride() for x in (parameter, *others)]
                _refuse(f"params, grads, exp_avgs, and exp_avg_sqs must have same layout: {strides}")

    def _note_waits(self, func: Any, args: Any, kwargs: dict[str, Any], place: torch.device) -> None:
        if func is aten._to_copy.default:
            self._note_copy(args[0], place, bool(kwargs.get("non_blocking")))
        elif func is aten.copy_.default:
            non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
            self._note_copy(args[1], args[0].device, non_blocking)
        elif func in READS:
            self.wait(func.name())
        elif func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if not all(isinstance(index, PretendedTensor) for index in indices):
                self.wait("CPU indices")
            elif any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.wait("boolean indices")

    def _note_copy(self, source: Tensor, place: torch.device, non_blocking: bool) -> None:
        if source.device.type == place.type:
            return
        if place.type == "cpu":
            self.wait("copy to the host")
        elif non_blocking and getattr(source, "is_pretended_pinned", False):
            self.uploads += 1
        else:
            self.wait("copy to the device")


# What stands in for torch's own


class CudaGenerator(REAL_GENERATOR):
    """A generator of the CPU that says it is a device's."""

    known: ClassVar[dict[int, "CudaGenerator"]] = {}  # by address; kept, so that no other gets it
    place: torch.device

    @property
    def device(self) -> torch.device:
        return self.place


class _Generators(type):
    def __call__(cls, device: torch.device | str = "cpu") -> Any:
        place = _device().resolve(device)
        if place.type != "cuda":
            return REAL_GENERATOR(place)
        made = CudaGenerator()
        made.place = place
        CudaGenerator.known[made._cdata] = made
        return made

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, REAL_GENERATOR)


class Generator(metaclass=_Generators):
    """Makes generators of the device that is named."""


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """Return what `torch.tensor` does; its values are copied from the host."""
    place = None if device is None else _device().resolve(device)
    if place is None or place.type != "cuda":
        return REAL_TENSOR(data, *args, device=device, **kwargs)
    _device().wait("torch.tensor")
    return _put(REAL_TENSOR(data, *args, **kwargs), place)


def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what `Tensor.to` does, where a plain tensor is to go where a pretended one is."""
    if args and isinstance(args[0], PretendedTensor):
        return REAL_TO(self, args[0].place, args[0].dtype)
    return REAL_TO(self, *args, **kwargs)


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """Return a copy in memory that the device reads by itself."""
    if isinstance(self, PretendedTensor):
        _refuse("cannot pin 'torch.cuda.Tensor': only dense CPU tensors can be pinned")
    pinned = self.clone()
    pinned.is_pretended_pinned = True  # type: ignore[attr-defined]
    return pinned


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """Return the CPU's autocast for CUDA's: a shell is a tensor of the CPU to torch."""
    return REAL_AUTOCAST("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _groups(tensors: Any, with_indices: bool) -> dict[Any, Any]:
    """Return tensors by device and type, by the device that they say."""
    found = REAL_GROUPS(tensors, with_indices)
    return {(lists[0][0].device, dtype): (lists, indices) for (_, dtype), (lists, indices) in found.items()}


def _cuda_functions(device: PretendedCuda) -> dict[str, Any]:
    """Return what stands in for the functions of torch.cuda."""

    def set_device(place: torch.device | str | int) -> None:
        device.current = device.resolve(place).index

    def nothing(*_: Any, **__: Any) -> None:
        """Do nothing."""

    def one_byte(*_: Any) -> int:
        return 1

    properties = SimpleNamespace(
        name="Pretended GPU", uuid="pretended", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132
    )
    memory = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    idle = (
        "init", "_lazy_init", "empty_cache", "reset_peak_memory_stats", "set_rng_state", "manual_seed",
        "manual_seed_all",
    )  # fmt: skip
    return {
        **dict.fromkeys(memory, one_byte),
        **dict.fromkeys(idle, nothing),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: device.count,
        "current_device": lambda: device.current,
        "set_device": set_device,
        "synchronize": lambda *_: device.wait("synchronize"),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "mem_get_info": lambda *_: (79 << 30, 80 << 30),
    }


@contextmanager
def pretended_cuda(count: int = 1) -> Iterator[PretendedCuda]:
    """Pretend that there are so many CUDA devices."""
    global _pretended
    device = PretendedCuda(count)
    patches = [
        (torch, "Generator", Generator), (torch, "tensor", _tensor), (torch, "autocast", _autocast),
        (torch.Tensor, "to", _to), (torch.Tensor, "pin_memory", _pin_memory),
        (torch._C, "_group_tensors_by_device_and_dtype", _groups),
        (torch.accelerator, "synchronize", lambda *_: device.wait("synchronize")),
        *((torch.cuda, name, function) for name, function in _cuda_functions(device).items()),
    ]  # fmt: skip
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as undo:
        for owner, name, value in patches:
            undo.enter_context(patch.object(owner, name, value))
        torch.__future__.set_swap_module_params_on_conversion(True)  # else a module could not take shells for weights
        undo.callback(torch.__future__.set_swap_module_params_on_conversion, swapping)
        undo.enter_context(device)
        _pretended = device
        try:
            yield device
        finally:
            _pretended = None
