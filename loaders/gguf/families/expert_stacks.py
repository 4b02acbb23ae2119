"""A layer's experts: GGUF stacks gate, up and down projections apart, transformers joins the first two."""

from __future__ import annotations

from loaders.errors import ModelFilesError
from loaders.gguf.families.architecture import Divide
from loaders.gguf.header import GgufTensor
from loaders.gguf.metadata import Metadata
from loaders.gguf.placement import RowOrder, Whole


def joined_experts(path: str = "mlp.experts", interleaved: bool = False, transposed: bool = False) -> dict[str, Divide]:
    """How to divide the experts' tensors of a layer; `path` names the module that holds them.

    interleaved: rows of the gate and of the up projection take turns. transposed: the matrices are [inputs, outputs].
    """

    def half(second: bool) -> Divide:
        def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
            experts, outputs, *inputs = _checked(metadata, tensor)
            sizes = [2 * outputs, *inputs]
            shape = (experts, *(sizes[::-1] if transposed else sizes))
            weight = f"{layer}{path}.gate_up_proj{'' if inputs else '_bias'}"
            whole = Whole(weight, shape, by_expert=True, input_major=transposed and bool(inputs))
            place = RowOrder(begin=int(second), step=2) if interleaved else _half(outputs, second)
            return [tensor.part_of(whole, "up" if second else "gate", place)]

        return divide

    def both(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        """Gate and up projections in one, as some converters join them."""
        _, _, *inputs = _checked(metadata, tensor)
        if not interleaved and not transposed:
            return [tensor.named(f"{layer}{path}.gate_up_proj{'' if inputs else '_bias'}")]
        raise ModelFilesError(f"{tensor.file}: {tensor.name}: gate and up projections cannot be in one here.")

    def down(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
        experts, outputs, *inputs = _checked(metadata, tensor)
        weight = f"{layer}{path}.down_proj{'' if inputs else '_bias'}"
        if not transposed or not inputs:
            return [tensor.named(weight)]
        whole = Whole(weight, (experts, *inputs, outputs), by_expert=True, input_major=True)
        return [tensor.part_of(whole, "down", RowOrder())]

    names = {"gate": half(False), "up": half(True), "gate_up": both, "down": down}
    return {f"ffn_{name}_exps.{suffix}": divide for name, divide in names.items() for suffix in ("weight", "bias")}


def joined_shared_expert(path: str, suffix: str = "_shexp") -> dict[str, Divide]:
    """How to divide the gate and the up projection of the MLP for all tokens, which are one matrix in the model.

    suffix: of GGUF's name for the MLP, which has none where there are no other experts.
    """

    def half(role: str) -> Divide:
        def divide(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
            outputs, inputs = tensor.values[0], tensor.values[-1]
            whole = Whole(f"{layer}{path}.weight", (2 * outputs, inputs))
            return [tensor.part_of(whole, role, _half(outputs, role == "up"))]

        return divide

    return {f"ffn_{role}{suffix}.weight": half(role) for role in ("gate", "up")}


def _shared_gate(metadata: Metadata, layer: str, tensor: GgufTensor) -> list[GgufTensor]:
    """One row, stored as a vector."""
    return [tensor.named(f"{layer}mlp.shared_expert_gate.weight", shape=(1, tensor.values[-1]))]


SHARED_GATE: dict[str, Divide] = {"ffn_gate_inp_shexp.weight": _shared_gate}


def _half(outputs: int, second: bool) -> RowOrder:
    return RowOrder(begin=outputs) if second else RowOrder(end=outputs)


def _checked(metadata: Metadata, tensor: GgufTensor) -> tuple[int, ...]:
    """The sizes of a stack of matrices or biases. Raises ModelFilesError unless it is one of all experts."""
    sizes, count = tensor.values, metadata.integer("expert_count")
    if sizes[0] != count or len(sizes) != (2 if tensor.name.endswith(".bias") else 3):
        raise ModelFilesError(
            f"{tensor.file}: {tensor.name} has shape {list(sizes)}, but must have [experts, outputs, inputs] for "
            f"{count} experts."
        )
    return sizes
