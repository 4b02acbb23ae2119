"""Mixtures of experts whose layers stream only the experts that a pass hits write the text that they write whole.

What lies in a slot where other experts should is NaN here: whoever computes with it shows.
"""

import os
import signal

import pytest
import torch
from transformers import CONFIG_MAPPING

from loaders.errors import ModelFilesError
from loaders.skeleton import build_skeleton
from loaders.spec import ALL_EXPERTS_AT_ONCE, read_spec
from offload_runtime import attention
from scheduler.expert_choice import ExpertChoice
from scheduler.expert_fetch import ExpertFetch
from scheduler.plan import Tier
from scheduler.unit_memory import UnitMemory
from tests.architectures import EXPERTS
from tests.tiny_models import PROMPT, checkpoint, greedy, perturbed, streaming_runtime

NEW_TOKENS = 12
FAMILIES = sorted((EXPERTS.keys() & CONFIG_MAPPING.keys()) - ALL_EXPERTS_AT_ONCE)
SAMPLE = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "aria_text"]
PLAIN = {"context_length": 64, "tree": "none"}
TREE = {"context_length": 64, "tree": "sequoia", "tree_size": 6, "tree_depth": 3}


@pytest.fixture
def forced(monkeypatch):
    """Decides for the choice; slots hold NaN wherever they were not filled."""

    def force(decide):
        monkeypatch.setattr(ExpertChoice, "only_hits", decide)

    fill = UnitMemory._fill_slot

    def poisoned(memory, unit, slot):
        slot.fill_(0xFF)
        return fill(memory, unit, slot)

    monkeypatch.setattr(UnitMemory, "_fill_slot", poisoned)
    return force


def only_hits(choice, rows, context):
    return True


def all_experts(choice, rows, context):
    return False


def one_row_only(choice, rows, context):
    return rows == 1


def write(runtime, count=NEW_TOKENS):
    return runtime.generate(PROMPT, max_new_tokens=count, temperature=0)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_computes_with_nothing_but_the_experts_it_hits(architecture, forced):
    forced(only_hits)
    with streaming_runtime(checkpoint(architecture), **PLAIN) as runtime:
        assert set(runtime.plan.tiers) == {Tier.DISK}
        reply = write(runtime, 5)
    assert reply.token_ids == greedy(checkpoint(architecture), PROMPT, 5)
    assert reply.stats.streamed_bytes < reply.stats.passes * runtime.plan.streamed_bytes
