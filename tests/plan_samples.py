"""Specifications of known models and made-up machines, written by hand, for the tests of the planner."""

from dataclasses import replace
from pathlib import Path

from loaders.checkpoint.spec import LayerSpec, ModelSpec
from loaders.sizes import GIB
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits


def model(name: str, sizes: list[int], embeddings_and_head: int, kv: int, **fields: object) -> ModelSpec:
    """A specification by hand; `sizes` are the layers' bytes, which are as many on disk."""
    layers = tuple(LayerSpec(f"model.layers.{index}", size, size) for index, size in enumerate(sizes))
    spec = ModelSpec(
        directory=Path(name),
        name=name,
        architecture="LlamaForCausalLM",
        model_type="llama",
        dtype="bfloat16",
        stored_dtype="bfloat16",
        layers=layers,
        embeddings_and_head_bytes=embeddings_and_head,
        disk_bytes=embeddings_and_head + sum(sizes),
        vocab_size=32_000,
        hidden_size=8192,
        intermediate_size=28_672,
        num_heads=64,
        kv_bytes_per_token=kv,
        max_positions=4096,
        recurrent=False,
    )
    return replace(spec, **fields)  # type: ignore[arg-type]


def packed(layer: LayerSpec, nbytes: int) -> LayerSpec:
    """The same layer in `nbytes` of packed weights."""
    return replace(layer, nbytes=nbytes, disk_bytes=nbytes, packed_bytes=nbytes, decoded_bytes=layer.nbytes)


LLAMA2_70B = model("Llama-2-70b", [1_711_309_824] * 80, 1_048_592_384, 327_680)
LLAMA3_70B = model("Llama-3-70B", [1_711_309_824] * 80, 4_202_708_992, 327_680, vocab_size=128_256)
LLAMA3_70B_INT4 = replace(
    LLAMA3_70B,
    name="Llama-3-70B-int4",
    layers=tuple(packed(layer, 444_500_000) for layer in LLAMA3_70B.layers),
    disk_bytes=LLAMA3_70B.embeddings_and_head_bytes + 80 * 444_500_000,
    decode_bytes=28_672 * 8192 * 2,
)
LLAMA3_8B = model(
    "Llama-3-8B", [436_224_000] * 32, 2_101_354_496, 131_072, vocab_size=128_256, hidden_size=4096,
    intermediate_size=14_336, num_heads=32,
)  # fmt: skip
LLAMA3_8B_INT4 = replace(
    LLAMA3_8B,
    name="Llama-3-8B-int4",
    layers=tuple(packed(layer, 113_000_000) for layer in LLAMA3_8B.layers),
    disk_bytes=LLAMA3_8B.embeddings_and_head_bytes + 32 * 113_000_000,
)
LLAMA_68M = model("llama-68m", [19_000_000] * 2, 98_000_000, 6144, hidden_size=768, intermediate_size=3072)
TINY = model(
    "tiny", [2_150_400] * 6, 3_000_000, 4608, dtype="float32", vocab_size=4096, hidden_size=192, intermediate_size=512,
    num_heads=6, max_positions=1024,
)  # fmt: skip
TINY_DRAFT = replace(
    TINY, name="tiny-draft", layers=TINY.layers[:1], embeddings_and_head_bytes=2_000_000, kv_bytes_per_token=1024
)
# A context so short that prompts are read in passes of 32 rows, whatever memory there is.
TINY_ROWS = Limits(context_length=32, tree_size=8)
# 2 MB of weights, of which 0.4 MB stay on the device.
SMALLEST = model(
    "smallest", [200_000] * 8, 400_000, 512, dtype="float32", vocab_size=512, hidden_size=64, intermediate_size=256,
    num_heads=4,
)  # fmt: skip


def gpu(free: int, host: int = 256 * GIB, link: float | None = 25e9, disk: float | None = None) -> Machine:
    return Machine("cuda", "some GPU", free, free, host, host, 16, link, disk)


def cpu(memory: int, disk: float | None = None) -> Machine:
    return Machine("cpu", "some CPU", memory, memory, memory, memory, 8, None, disk)
