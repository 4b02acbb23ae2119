"""From a plan to loaded models."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch

from loaders.checkpoint.low_bit_copy import copy_of
from loaders.checkpoint.spec import LayerSpec, ModelSpec
from loaders.dequantize.hooks import scratch_bytes
from loaders.io.reader import WeightReader
from loaders.modules.codes_apart import with_codes_apart
from loaders.modules.skeleton import Skeleton, UnitLayout, build_skeleton
from loaders.progress import StageProgress
from loaders.quantize.interrupts import interrupts_deferred
from offload_runtime.errors import MachineError, UnsupportedModelError
from offload_runtime.loading.heads import drafting, head_skeleton, making
from offload_runtime.model.attention import ATTENTION_NAME
from offload_runtime.model.cached_rows.travelling_rows import RowsOnHost
from offload_runtime.model.cuda_graphs import CudaGraphs
from offload_runtime.model.kv_cache import shares_rows
from offload_runtime.model.low_bits.copies import copied_bytes
from offload_runtime.model.low_bits.self_drafting import SelfDraftingModel
from offload_runtime.model.model import Model
from offload_runtime.model.model_placement import ModelPlacement
from offload_runtime.model.pass_overhead import measure_passes
from offload_runtime.options.run_options import IOMode
from offload_runtime.planning.host_shortage import host_shortage_explained
from offload_runtime.planning.planning import Preparation, with_known_figures
from offload_runtime.planning.read_models import ModelFiles
from offload_runtime.speculation.draft import Draft
from offload_runtime.speculation.self_draft import SelfDraft
from offload_runtime.speculation.target import Target
from scheduler.machine.capability import check_kernels
from scheduler.machine.cuda import as_cuda_numbers, current_device
from scheduler.plan.expert_choice import ExpertChoice
from scheduler.plan.pass_cost import PassCost
from scheduler.plan.plan import Plan, Tier
from scheduler.streaming.bandwidth import with_speed
from scheduler.streaming.device_memory import DeviceMemory
from sequoia_tree.uploads import reserve_uploads

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModels:
    """Target, optional draft, and the device memory they share. `close` stops their threads and frees the memory."""

    plan: Plan
    target: Target
    draft: Draft | None
    memory: DeviceMemory
    _resources: ExitStack

    def close(self) -> None:
        with interrupts_deferred():
            self._resources.close()


def load_models(preparation: Preparation, progress: StageProgress | None) -> LoadedModels:
    """Build both skeletons, plan again with their exact sizes, and load every layer into its tier.

    Raises DoesNotFitError if the host now has less memory than the plan takes, ModelFilesError for damaged files.
    """
    device = torch.device(preparation.machine.torch_device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"PyTorch {torch.__version__} cannot use {preparation.machine.device_name}, which the driver lists: "
            "its CUDA version and the driver's may not match.\n  --device cpu   runs without"
        )
    if device.type == "cuda":
        check_kernels(preparation.machine, torch.__version__, torch.cuda.get_arch_list())
    with current_device(device):
        return _load_on(device, _as_cuda_numbers(preparation), progress)


def _as_cuda_numbers(preparation: Preparation) -> Preparation:
    """The same, planned again if CUDA's device is another GPU than the one that was planned for."""
    if preparation.machine.device == "cpu":
        return preparation
    planned = preparation.machine
    machine = as_cuda_numbers(planned)
    if machine is planned:
        return preparation
    _log.warning(
        "CUDA's device %d is %s, not %s: planned anew", machine.index, machine.device_name, planned.device_name
    )
    return preparation.replanned(machine=with_known_figures(machine, preparation.target.spec.dtype))


def _load_on(device: torch.device, preparation: Preparation, progress: StageProgress | None) -> LoadedModels:
    target_skeleton = _skeleton(preparation.target, device)
    if preparation.draft and preparation.draft.spec.copy_bits:
        target_skeleton = with_codes_apart(target_skeleton, preparation.draft.spec.copy_bits)
    head = draft_skeleton = None
    if preparation.draft and preparation.draft.head:
        head = head_skeleton(preparation.draft, target_skeleton, device)
        draft_skeleton = head.skeleton
    elif preparation.draft and not preparation.draft.spec.copy_bits:
        draft_skeleton = _skeleton(preparation.draft, device)
    target_spec = _exact(preparation.target.spec, target_skeleton)
    preparation = preparation.replanned(
        target=target_spec,
        draft=_exact_draft(preparation.draft, draft_skeleton, target_spec, target_skeleton),
        machine=with_speed(preparation.machine, preparation.target.spec.dtype, measure_passes),
    )
    plan, memory = preparation.plan, DeviceMemory(device)
    reserve_uploads(device)
    memory.add(plan.workspace_bytes)  # reserved for the activations of the largest pass
    with (
        interrupts_deferred() as check_interrupts,  # also checked while layers load; everything opened is closed
        host_shortage_explained(preparation),
        ExitStack() as resources,
    ):
        load = _Loader(plan, preparation.options.io, memory, resources, progress)
        draft_model = None
        if preparation.draft and draft_skeleton:
            resident, make = (Tier.DEVICE,) * len(draft_skeleton.layers), making(head, plan) if head else Model
            draft_model = load(preparation.draft, draft_skeleton, resident, plan.decoded.draft, make=make)
        bits = preparation.draft.spec.copy_bits if preparation.draft else None
        make = partial(SelfDraftingModel, bits) if bits else Model
        placed = (plan.tiers, plan.decoded.target, plan.kv == "host")
        target = Target(load(preparation.target, target_skeleton, *placed, make=make), plan.rows)
        draft: Draft | None = None
        if isinstance(target.model, SelfDraftingModel):
            _refuse_states(target.model)
            draft = SelfDraft(target.model, target.model.vocab_size, plan.rows)
        if draft_model:
            _refuse_states(target.model, draft_model)
            draft = drafting(draft_model, target, target_skeleton, memory, plan)
        for role, model in (("target", target.model), ("draft", draft.model if draft else None)):
            if model and role in plan.graphs and not model.cache.has_states:
                model.pad_passes(plan.padding, CudaGraphs(device))
        check_interrupts()
        return LoadedModels(plan, target, draft, memory, resources.pop_all())


def _refuse_states(*models: Model) -> None:
    """Reject recurrent models that only their cache reveals; the plan rejects the known ones."""
    for model in models:
        if model.cache.is_recurrent:
            raise UnsupportedModelError(
                f"{model.config.model_type} keeps a recurrent state, which cannot branch over a tree of drafts.\n"
                "  --draft none decodes plainly"
            )


def _skeleton(files: ModelFiles, device: torch.device) -> Skeleton:
    dtype = getattr(torch, files.spec.dtype)
    return build_skeleton(files.spec.directory, dtype, device, ATTENTION_NAME, files.checkpoint, files.rope_scaling)


def _exact_draft(
    draft: ModelFiles | None, skeleton: Skeleton | None, target: ModelSpec, target_skeleton: Skeleton
) -> ModelSpec | None:
    """The draft's spec with exact sizes, those of its own skeleton or of a copy of the target's."""
    if draft is None:
        return None
    if skeleton is not None:
        return _exact(draft.spec, skeleton)
    assert draft.spec.copy_bits is not None
    copied, bits = copy_of(target, draft.spec.copy_bits), draft.spec.copy_bits
    sizes = [copied_bytes(layer, bits) for layer in target_skeleton.layers]
    layers = tuple(replace(layer, nbytes=size, packed_bytes=size) for layer, size in zip(copied.layers, sizes))
    return replace(copied, layers=layers)


def _exact(spec: ModelSpec, skeleton: Skeleton) -> ModelSpec:
    """`spec` with the exact sizes: some tensors stay in float32, fused ones are padded differently."""
    layers = tuple(_exact_layer(layer, real) for layer, real in zip(spec.layers, skeleton.layers))
    return replace(
        spec,
        layers=layers,
        embeddings_and_head_bytes=skeleton.embeddings_and_head.layout.nbytes,
        decode_bytes=scratch_bytes(skeleton.packed),
        embeddings_and_head_decode_bytes=scratch_bytes(skeleton.embeddings_and_head.packed.values()),
        shares_kv=shares_rows(skeleton.config),
    )


def _exact_layer(spec: LayerSpec, layer: UnitLayout) -> LayerSpec:
    spec = replace(spec, nbytes=layer.layout.nbytes, resident_code_bytes=layer.code.layout.nbytes if layer.code else 0)
    if layer.decoded:  # so that `weight_bytes` are those of the dequantized layout
        spec = replace(spec, decoded_bytes=layer.decoded.layout.nbytes - layer.layout.nbytes + spec.packed_bytes)
    if not spec.experts or layer.experts is None:
        return replace(spec, experts=0, expert_bytes=0, expert_disk_bytes=0)
    return replace(spec, experts=layer.experts.count, expert_bytes=layer.layout.nbytes - layer.dense_bytes)


@dataclass(frozen=True)
class _Loader:
    plan: Plan
    io: IOMode
    memory: DeviceMemory
    resources: ExitStack
    progress: StageProgress | None

    def __call__(
        self,
        files: ModelFiles,
        skeleton: Skeleton,
        tiers: tuple[Tier, ...],
        dequantized: int,
        kv_on_host: bool = False,
        make: Callable[..., Model] = Model,
    ) -> Model:
        plan = self.plan
        reader = self.resources.enter_context(
            WeightReader(files.checkpoint.files, self.io, chunk_bytes=plan.read_chunk_bytes)
        )
        placement = ModelPlacement(
            tiers,
            plan.slots,
            plan.cache_rows,
            files.spec.max_positions,
            plan.pinned_limit,
            ExpertChoice(PassCost(files.spec, tiers, plan.slots, plan.machine)),
            dequantized,
            plan.texts,
            plan.context_length,
            RowsOnHost(plan.kv_token_bytes, plan.machine.pinned_limit) if kv_on_host else None,
            files.spec.kv_bits is not None,
        )
        reading, dequantizing = (self._progressing(f"{stage} {files.spec.name}") for stage in ("loading", "decoding"))
        model = make(skeleton, files.checkpoint, placement, reader, self.memory, reading, dequantizing)
        self.resources.callback(model.close)
        return model

    def _progressing(self, stage: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(stage, done, total)
