"""Makes native networks of the recorded calls of a forward, and leaves the other calls as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseinfer import ops
from sparseinfer.formats import CSR
from sparseinfer.modules.chain import FoldedLayer, affine_of
from sparseinfer.modules.conv import SparseConv2d, weight_in_channels_last
from sparseinfer.modules.pooling import ChannelsLastMaxPool2d
from sparseinfer.modules.regions.forms import (
    ADDITIONS,
    NOTHING,
    PRODUCTS,
    Padded,
    activation_of,
    is_mean,
    with_padded,
    writes,
)
from sparseinfer.modules.regions.trace import Call, Recorded, Value
from sparseinfer.ops.cpu.kernels import kernel_id
from sparseinfer.ops.cpu.network import NO_VALUE, Network, Step
from sparseinfer.ops.cpu.packing import pack

# Dense weights that are packed for a network: they are held twice, and compared at every call.
MOST_DENSE_BYTES = 256 << 10
_POOLS = (nn.MaxPool2d, ChannelsLastMaxPool2d)
# Storages whose kernels read images of fp32.
_STORAGES = ("f32", "wbf16", "wf16")

_PIXEL = (1, 1)
Window: TypeAlias = "tuple[tuple[int, int], ...]"
Pads: TypeAlias = "tuple[int, int, int, int]"
# A tensor of the model whose values went into a step, and what they were.
Copied: TypeAlias = "tuple[tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None], ops.Kept]"


@dataclass
class Native:
    """Consecutive calls as one network.

    inputs    numbers of the values it reads
    outputs   numbers of the values it makes that are used elsewhere, each with its place among the results
    layers    the layers in it
    computed  the step of each layer that multiplies
    copied    values of the model's that the network has a copy of
    """

    network: Network
    inputs: list[int]
    outputs: dict[int, int]
    layers: list[nn.Module]
    computed: dict[nn.Module, Step]
    copied: list[Copied]


Part: TypeAlias = "Native | tuple[int, Call]"


def lowered(recorded: Recorded) -> list[Part]:
    """The calls in order: networks, and calls that stay, each with the number of its value."""
    uses = Counter(number for call in recorded.calls for number in call.reads())
    uses.update(leaf.number for leaf in recorded.leaves if isinstance(leaf, Value))
    parts: list[Part] = []
    run: list[tuple[int, Call]] = []
    alone: set[int] = set()  # values of the run that nothing else refers to

    def close() -> None:
        if run:
            parts.extend(_Lowering(run, uses, pixels).parts())
            run.clear()
            alone.clear()

    pixels: set[int] = set()  # values of one pixel, whatever the input
    for number, call in with_padded(recorded.calls, uses):
        if _is_pixel(call, pixels):
            pixels.add(number)
        if _is_native(call, uses, alone, pixels):
            run.append((number, call))
            # What does nothing returns its input.
            if not isinstance(call.function, NOTHING) or all(
                i in alone and uses[i] == 1 for i in call.reads()
            ):
                alone.add(number)
        else:
            close()
            parts.append((number, call))
    close()
    return parts


def _is_pixel(call: Call, pixels: set[int]) -> bool:
    if is_mean(call):
        return True
    function: Any = call.function
    layer = function.plain if isinstance(function, FoldedLayer) else function
    if isinstance(layer, (nn.Conv2d, SparseConv2d)):
        keeps = _pair(layer.kernel_size) == _PIXEL and layer.padding in (0, (0, 0))
    else:
        keeps = (
            function in ADDITIONS
            or isinstance(layer, (nn.BatchNorm2d, *NOTHING))
            or activation_of(call) != "none"
        )
    return keeps and pixels.issuperset(call.reads())


def _is_native(call: Call, uses: Counter[int], alone: set[int], pixels: set[int]) -> bool:
    """Whether a step of a network computes it; `alone`: values that nothing else can refer to."""
    function = call.function
    values = [arg for arg in call.args if isinstance(arg, Value)]
    if is_mean(call):
        return True
    if function in ADDITIONS or function in PRODUCTS:
        if len(call.args) != 2 or len(values) != 2 or call.kwargs:
            return False
        if function in PRODUCTS:
            return any(value.number in pixels for value in values)
    elif len(call.args) != 1 or len(values) != 1:
        return False
    if writes(call) and (values[0].number not in alone or uses[values[0].number] != 1):
        return False
    if isinstance(function, NOTHING):
        return not function.training or isinstance(function, nn.Identity)
    if function in ADDITIONS:
        return True
    if activation_of(call) != "none":
        return True
    layer = function.layer if isinstance(function, Padded) else function
    return not call.kwargs and isinstance(layer, nn.Module) and _is_step(layer)


def _is_step(layer: Any) -> bool:
    if isinstance(layer, FoldedLayer):
        return _is_step(layer.plain)
    kind = type(layer)
    if kind is SparseConv2d:
        storages = {layout.storage for layout in layer._layouts()}
        plain = layer._pad is None and not layer.channels_last and storages <= {*_STORAGES}
        return plain and layer._info.device == "cpu" and layer.dtype == torch.float32
    if kind is nn.Conv2d:
        return _is_dense_step(layer)
    if kind is nn.BatchNorm2d:
        return _is_norm(layer)
    if kind not in _POOLS:
        return False
    pool: Any = layer
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return not pool.ceil_mode and not pool.return_indices and all(map(_is_pair, sizes))


def _is_norm(layer: Any) -> bool:
    """Whether it is a batch norm that multiplies and adds fp32 vectors on the CPU."""
    if type(layer) is not nn.BatchNorm2d or layer.running_mean is None or layer.running_var is None:
        return False
    held = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    return not layer.training and all(t is None or (t.dtype == torch.float32 and t.is_cpu) for t in held)


def _is_dense_step(conv: nn.Conv2d) -> bool:
    weight = conv.weight
    held = [t for t in (weight, conv.bias) if t is not None]
    plain = all(type(t) is nn.Parameter and t.dtype == torch.float32 and t.is_cpu for t in held)
    plain = plain and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if not plain or weight_in_channels_last(conv) or not all(t.is_contiguous() for t in held):
        return False
    return _is_depthwise(conv) or (conv.groups == 1 and weight.nbytes <= MOST_DENSE_BYTES)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1


def _is_pair(size: Any) -> bool:
    return isinstance(size, int) or (len(size) == 2 and all(isinstance(one, int) for one in size))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _window_of(layer: Any) -> Window:
    return tuple(_pair(getattr(layer, name)) for name in ("kernel_size", "stride", "padding", "dilation"))


def _with_pads(window: Window, pads: Pads) -> tuple[Window, tuple[int, int]]:
    """The window with zeros around the image, and the padding below and right."""
    kernel_size, stride, (above, beside), dilation = window
    left, right, top, bottom = pads
    return (kernel_size, stride, (above + top, beside + left), dilation), (above + bottom, beside + right)


@dataclass
class _Lowering:
    """Of consecutive calls, all of which are native."""

    run: Sequence[tuple[int, Call]]
    uses: Counter[int]
    pixels: set[int]
    inputs: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)  # of values, in the network
    shared: set[int] = field(default_factory=set)  # places that several values have
    layers: list[nn.Module] = field(default_factory=list)
    computed: dict[nn.Module, Step] = field(default_factory=dict)
    copied: list[Copied] = field(default_factory=list)

    def parts(self) -> list[Part]:
        made = {number for number, _ in self.run}
        reads = Counter(number for _, call in self.run for number in call.reads())
        self.inputs = sorted(reads.keys() - made)
        self.places = {number: place for place, number in enumerate(self.inputs)}
        self.shared = set(self.places.values())
        for number, call in self.run:
            self.places[number] = self._place(call)
        # Values that somebody else reads too.
        outside = {number for number in made if self.uses[number] > reads[number]}
        wanted = sorted({self.places[number] for number in outside})
        if not self.steps or (wanted and wanted[0] < len(self.inputs)) or not self._pays():
            return list(self.run)
        network = Network(len(self.inputs), self.steps, wanted)
        outputs = {number: wanted.index(self.places[number]) for number in outside}
        return [Native(network, self.inputs, outputs, self.layers, self.computed, self.copied)]

    def _pays(self) -> bool:
        return any(step.kind in ("conv", "depthwise") for step in self.steps)

    def _place(self, call: Call) -> int:
        function: Any = call.function
        pads = (0, 0, 0, 0)
        if isinstance(function, Padded):
            function, pads = function.layer, function.pads
        read = [leaf.number for leaf in call.args if isinstance(leaf, Value)]
        x = self.places[read[0]]
        if isinstance(function, nn.Module):
            self.layers.append(function)
        if function in ADDITIONS:
            return self._add(read)
        if function in PRODUCTS:
            image, pixel = read if read[1] in self.pixels else read[::-1]
            return self._new(Step("scale", self.places[image], other=self.places[pixel]))
        if is_mean(call):
            return self._new(Step("mean", x))
        if isinstance(function, NOTHING):
            if self.uses[read[0]] != 1:
                self.shared.add(x)
            return x
        name = activation_of(call)
        if name != "none":
            step = self._open(read[0])
            if step is None:
                return self._new(Step("add", x, activation=name))
            step.activation = name
            return x
        layer = function.plain if isinstance(function, FoldedLayer) else function
        if isinstance(layer, nn.BatchNorm2d):
            return self._norm(read[0], layer)
        if isinstance(layer, (SparseConv2d, nn.Conv2d)):
            lower: Any = self._sparse if isinstance(layer, SparseConv2d) else self._dense
            place: int = lower(x, layer, pads)
            self.computed[function] = self.steps[-1]
            return place
        return self._new(Step("max_pool", x, window=_window_of(layer)))

    def _new(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.inputs) + len(self.steps) - 1

    def _open(self, value: int) -> Step | None:
        """The step that made the value, if what follows may become part of it."""
        place = self.places[value]
        if place in self.shared or self.uses[value] != 1:
            return None
        step = self.steps[place - len(self.inputs)]
        return step if step.activation == "none" and step.kind not in ("max_pool", "mean") else None

    def _add(self, read: Sequence[int]) -> int:
        a, b = (self.places[number] for number in read)
        # The later of the two can add the earlier one, which is there by then.
        for value, other in sorted(zip(read, (b, a), strict=True), key=lambda pair: -self.places[pair[0]]):
            step = self._open(value)
            if step is not None and step.other == NO_VALUE and other < self.places[value]:
                step.other = other
                return self.places[value]
        return self._new(Step("add", a, other=b))

    def _norm(self, value: int, norm: nn.BatchNorm2d) -> int:
        step, place = self._open(value), self.places[value]
        held = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        self._copy(*held)
        scale, shift = affine_of(norm)
        if (
            step is None
            or step.kind in ("add", "scale")
            or step.factors is not None
            or step.other != NO_VALUE
        ):
            step = Step("add", place, n=norm.num_features)
            place = self._new(step)
        elif step.bias is not None:
            bias = step.bias
            self._copy(bias, None, None, None)
            shift = shift + scale * bias.detach().double()
        step.factors, step.bias = scale.float().contiguous(), shift.float().contiguous()
        return place

    def _copy(self, *held: Tensor | None) -> None:
        a, b, c, d = held
        kept = ops.Kept(tuple(None if t is None else t.detach().clone() for t in (a, b, c, d)))  # type: ignore[arg-type]
        self.copied.append(((a, b, c, d), kept))

    def _sparse(self, x: int, conv: SparseConv2d, pads: Pads) -> int:
        bucket = ops.parse_plan(conv.plan)[-1]
        first = bucket.packing * conv.groups
        sizes = (conv._op_kernel_size, conv._op_stride, conv._op_padding, conv._op_dilation)
        window, after = _with_pads(tuple(map(_pair, sizes)), pads)
        return self._new(
            Step(
                "conv",
                x,
                activation=conv.activation,
                window=window,
                padding_after=after,
                kernel=kernel_id(bucket.kernel),
                packings=conv._packings()[first : first + conv.groups],
                n=conv.out_channels,
                bias=conv.bias,
            )
        )

    def _dense(self, x: int, conv: nn.Conv2d, pads: Pads) -> int:
        window, after = _with_pads(_window_of(conv), pads)
        step = Step("conv", x, window=window, padding_after=after, n=conv.out_channels, bias=conv.bias)
        if _is_depthwise(conv):
            step.kind, step.weights = "depthwise", conv.weight
            return self._new(step)
        # With all rows in every pattern the kernel multiplies without looking anything up.
        fmt = CSR.from_dense(conv.weight.detach().flatten(1))
        layout = ops.Layout.on_cpu(fmt)
        step.kernel = kernel_id(layout.conv_buckets(0)[0].kernel)
        step.packings = [pack(fmt, layout.packing)]
        self._copy(conv.weight, None, None, None)
        return self._new(step)
