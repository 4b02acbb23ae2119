"""From the user's options to a plan, without reading weights and without importing torch."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loaders.checkpoint.low_bit_copy import COPIES, copy_of, with_resident_codes
from loaders.checkpoint.mtp import has_known_head
from loaders.checkpoint.spec import ModelSpec
from loaders.sizes import parse_size
from loaders.tokenizers.chat_templates import read_template
from loaders.tokenizers.vocabulary import check_same_vocabulary
from offload_runtime.errors import DoesNotFitError, MachineError, UsageError
from offload_runtime.options.fields import values_of
from offload_runtime.options.run_options import AUTO, AUTO_LINK, MTP, Options, located
from offload_runtime.planning.draft_choice import DraftChoice, choose_draft, head_note
from offload_runtime.planning.expected_acceptance import ExpectedAcceptance, expected_acceptance
from offload_runtime.planning.link_choice import LinkChoice, choose_link
from offload_runtime.planning.parallel_choice import best_parallel_plan
from offload_runtime.planning.quantized_directory import Packing
from offload_runtime.planning.read_models import (
    ModelFiles,
    read_draft,
    read_mtp_head,
    read_target,
    smaller_targets,
    vocabulary_of,
)
from offload_runtime.speculation.acceptance_store import Drafter
from scheduler.machine.capability import check_build
from scheduler.machine.data_sheets import planned_machine, recognised, with_data_sheet
from scheduler.machine.machine import Machine, has_nvidia_card, read_machine
from scheduler.machine.measurements import read_bandwidth, with_known_speed
from scheduler.machine.torch_build import torch_build
from scheduler.plan.plan import Limits, Plan, Tier, make_plan

CUDA_BUILD = "pip install --force-reinstall torch"


@dataclass(frozen=True)
class Preparation:
    """Everything that is decided before weights are read. acceptance: None without a draft.

    draft_note, link_note: one line each for the user on the automatic choice of a draft and of the link. packing: the
    target's quantization, if requested.
    """

    options: Options
    target: ModelFiles
    draft: ModelFiles | None
    machine: Machine
    limits: Limits
    acceptance: ExpectedAcceptance | None
    plan: Plan
    draft_note: str | None = None
    link_note: str | None = None
    packing: Packing | None = None

    @property
    def drafter(self) -> Drafter | None:
        """The directory of the draft in use, or the bits of a copy of the target; None without a draft."""
        return (self.draft.spec.copy_bits or self.draft.spec.directory) if self.draft else None

    def replanned(
        self,
        target: ModelSpec | None = None,
        draft: ModelSpec | None = None,
        machine: Machine | None = None,
        limits: Limits | None = None,
    ) -> "Preparation":
        """The same, planned again with exact specs, measured speeds of the machine, or other limits."""
        new_target = replace(self.target, spec=target or self.target.spec)
        new_draft = replace(self.draft, spec=draft or self.draft.spec) if self.draft else None
        machine, limits = machine or self.machine, limits or self.limits
        plan = _plan(self.options, new_target, new_draft, machine, limits, self.acceptance)
        return replace(self, target=new_target, draft=new_draft, machine=machine, limits=limits, plan=plan)


def prepare(options: Options) -> Preparation:
    """Read configs and headers, from disk or the hub, read the machine, choose a draft if asked to, and make the plan.

    Raises ModelFilesError, UnsupportedModelError, MachineError, DoesNotFitError, DraftMismatchError or UsageError.
    """
    if options.chat_template is not None:
        read_template(options.chat_template)  # a wrong name is found here, not by the first message after loading
    try:
        machine, limits = _machine(options), _limits(options)
        options = located(options)
        target, packing = read_target(options, machine)
        machine = with_known_figures(machine, target.spec.dtype)
        link = LinkChoice(options.link)
        if options.link == AUTO_LINK:
            link = choose_link(options, target, machine, limits)
            options = replace(options, link=link.link)
            target, packing = read_target(options, machine)
        choice = _choose(options, target, machine, limits)
        draft, note = None, choice.note
        if choice.copy_bits is not None:
            target = replace(target, spec=with_resident_codes(target.spec, choice.copy_bits))
            draft = replace(target, spec=copy_of(target.spec, choice.copy_bits))
        elif choice.head:
            draft = read_mtp_head(target)
        elif choice.directory is not None:
            draft = read_draft(options, choice.directory, machine, target.spec)
            if options.draft != AUTO and not draft.head:  # else the choice has compared them; a head has no tokens
                _check_tokens(options, target.spec, draft.spec)
            if options.draft != AUTO and draft.head:
                note = head_note(draft.spec, target.spec, vocabulary_of(options, options.model))
        elif options.draft == AUTO and options.tree == "auto":
            limits = replace(limits, repeat_text=True)
        acceptance = expected_acceptance(options.model, draft.spec) if draft else None
        plan = _plan(options, target, draft, machine, limits, acceptance)
        preparation = Preparation(options, target, draft, machine, limits, acceptance, plan, note, link.note, packing)
        if Tier.DISK not in plan.tiers or target.missing_bytes:
            return preparation
        rate = read_bandwidth(packing.files_at_hand if packing else target.checkpoint.files, plan.read_chunk_bytes)
        return preparation.replanned(machine=replace(machine, disk_bandwidth=rate))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _choose(options: Options, target: ModelFiles, machine: Machine, limits: Limits) -> DraftChoice:
    """The draft that the user named, the automatic choice, or none."""
    spec = target.spec
    if options.draft is None or options.tree == "none":
        return DraftChoice()
    if options.draft in COPIES:
        return DraftChoice(copy_bits=COPIES[str(options.draft)])
    if options.draft not in (AUTO, MTP):
        assert isinstance(options.draft, Path)
        return DraftChoice(options.draft)
    vocabulary = vocabulary_of(options, options.model) if spec.can_branch else None
    if options.draft == MTP:
        return DraftChoice(note=head_note(read_mtp_head(target).spec, spec, vocabulary), head=True)
    head = read_mtp_head(target).spec if has_known_head(spec.model_type, target.checkpoint) else None
    return choose_draft(
        spec,
        vocabulary,
        machine,
        limits,
        lambda directory: read_draft(options, directory, machine, spec).spec,
        head=head,
        accepted=partial(expected_acceptance, options.model),  # the target may be a packing of it
    )


def _check_tokens(options: Options, target: ModelSpec, draft: ModelSpec) -> None:
    """Reject a draft with other tokens than the target, if both can be read without torch."""
    ours, theirs = vocabulary_of(options, options.model), vocabulary_of(options, draft.directory)
    if ours and theirs:
        check_same_vocabulary(ours, theirs, target.vocab_size, draft.vocab_size)


def _plan(
    options: Options,
    target: ModelFiles,
    draft: ModelFiles | None,
    machine: Machine,
    limits: Limits,
    acceptance: ExpectedAcceptance | None,
) -> Plan:
    by_child, draft_spec = acceptance.verified_by(options.rule) if acceptance else (), draft.spec if draft else None
    try:
        return best_parallel_plan(target.spec, draft_spec, machine, limits, by_child)
    except DoesNotFitError:
        smaller = tuple(smaller_targets(options, machine))
        make_plan(target.spec, draft_spec, machine, limits, smaller)  # raises again, with better advice
        raise


def _machine(options: Options) -> Machine:
    """The machine to plan for: this one, or one with the GPU that the user named."""
    if options.gpu is None:
        machine = machine_for(options.device)
        check_build(machine, torch_build())
        return machine
    host_memory = options.host_memory
    return planned_machine(
        options.gpu, read_machine("cpu"), parse_size(host_memory) if isinstance(host_memory, str) else host_memory
    )


def machine_for(asked: str) -> Machine:
    """This machine with the requested device, if PyTorch is built for it. Raises MachineError."""
    device = _usable_device(asked)
    try:
        machine = read_machine(device)
    except MachineError as error:
        raise MachineError(f"{error}\n  --device cpu   runs without") from error
    return replace(machine, note=_note(device)) if device != asked else machine


def with_known_figures(machine: Machine, dtype: str) -> Machine:
    """The machine with speeds measured at earlier starts, or else from the GPU's data sheet."""
    machine = with_known_speed(machine, dtype)
    gpu = recognised(machine.device_name) if machine.device == "cuda" else None
    return with_data_sheet(machine, gpu) if gpu else machine


def _note(device: str) -> str | None:
    """A note if an NVIDIA card is not used because of the PyTorch build."""
    if device != "cpu" or not has_nvidia_card():
        return None
    return (
        f"An NVIDIA card is here, but PyTorch {torch_build().version} is built without CUDA: the processor computes. "
        f"{CUDA_BUILD} installs the CUDA build."
    )


def _usable_device(device: str) -> str:
    """Choose the CPU if the installed PyTorch has no CUDA, which is found out without importing it.

    Raises MachineError if the user chose a GPU.
    """
    build = torch_build()
    if build.cuda or device == "cpu":
        return device
    if device != AUTO:
        raise MachineError(
            f"the installed PyTorch ({build.version}) is built without CUDA.\n"
            f"  {CUDA_BUILD}   installs the CUDA build where there is one\n"
            "  --device cpu                          runs without"
        )
    return "cpu"


def _limits(options: Options) -> Limits:
    values = values_of(Limits, options)
    for name in ("device_memory", "host_memory"):
        if isinstance(values[name], str):
            values[name] = parse_size(values[name])
    if options.gpu is not None:
        values["host_memory"] = None  # it is what the planned machine has, not a cap
    limits: dict[str, Any] = {name: None if value == "auto" else value for name, value in values.items()}
    return Limits(**limits)
