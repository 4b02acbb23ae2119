"""How often a target accepts its own low-bit copy: against transformers, and found again by plan and drafting."""

import copy
import json
from pathlib import Path

import pytest
import torch

from loaders.dequantize.stacks import approximate_code
from loaders.lossless.bins import BLOCK, KINDS, Bins
from loaders.lossless.encode import code_of
from offload_runtime import measure_acceptance
from offload_runtime.measure_acceptance.prompts import prompts_for
from offload_runtime.model.low_bits.copies import LEAST_CODED
from offload_runtime.options.run_options import Options
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import acceptance_store
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from scheduler.plan import placement, plan
from scheduler.plan.request import PlanRequest
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.acceptance.observe import observe_greedy
from sequoia_tree.shaping.settings import Sampling
from tests.samples.tiny_models import checkpoint, reference

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
LIMITS = {"device": "cpu", "context_length": 64, "tree_size": 40}
NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def streams(monkeypatch):
    """All layers stream, as a large model's: a tiny one whole takes less memory than slots and copies."""
    monkeypatch.setattr(PlanRequest, "resident_shapes", lambda request, context_length: iter(()))
    monkeypatch.setattr(plan, "place_on_device", lambda layers, room, copies=(): placement._placement(layers, 0, 2))


def model() -> Path:
    return checkpoint("llama", **SIZES)


def run(draft: str, *arguments: str) -> int:
    limits = ["--device", "cpu", "--context-length", "64", "--tree-size", "40", "--dtype", "float32"]
    amount = ["--max-new-tokens", str(NEW_TOKENS), "--positions", "60", "--quiet"]
    return measure_acceptance.main(["--model", str(model()), "--draft", draft, *limits, *amount, *arguments])


def copied(bits: int) -> torch.nn.Module:
    """The model with its layers' weights as a copy in `bits` bits has them."""
    module = copy.deepcopy(reference(model()))
    bins = Bins(KINDS["BF16"], bits)
    for weight in module.model.layers.parameters():
        if weight.dim() > 1 and weight.numel() >= LEAST_CODED and weight.numel() % BLOCK == 0:
            code, top = code_of(weight.detach().bfloat16().view(-1), bins)
            approximate_code(bins, code, top, weight.data.view(-1))
    return module


@pytest.mark.parametrize(("draft", "bits"), [("self", 4), ("self:3", 3)])
@pytest.mark.usefixtures("streams")
def test_figures_are_those_of_a_copy_that_reads_the_targets_rows(capsys, draft, bits):
    assert run(draft, "--temperature", "0", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["settings"]
    total, agreements, drafting = Acceptance.empty(), 0, copied(bits)
    for prompt in prompts_for(model(), 96, None, False, 0):
        with torch.inference_mode():
            ids = reference(model()).generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
            rows = reference(model())(ids[:, : len(prompt) - 1], use_cache=True).past_key_values
            q = drafting(ids[:, len(prompt) - 1 : -1], past_key_values=rows).logits[0]
            p = reference(model())(ids[:, :-1]).logits[0, len(prompt) - 1 :]
        total += observe_greedy(p, q)
        agreements += int((p.argmax(-1) == q.argmax(-1)).sum())
    assert found["agreement"] == agreements / found["contexts"] and agreements < found["contexts"]
    assert found["acceptance"] == pytest.approx(total.positional().tolist())


@pytest.mark.usefixtures("streams")
def test_plan_and_drafting_find_the_figures_of_their_width(capsys):
    def prepared(draft):
        return prepare(Options(model(), draft, **LIMITS))

    assert not prepared("self:5").acceptance.measured
    assert run("self:5", "--temperature", "0.6") == 0
    assert "a copy of" in capsys.readouterr().out
    known = prepared("self:5")
    assert known.acceptance.measured and any("measured for this pair" in line for line in forecast(known))
    assert not prepared("self:4").acceptance.measured and not prepared("self").acceptance.measured
    learned = LearnedAcceptance(known.options.model, known.drafter)
    assert learned.measured(Sampling(temperature=0.6)).positions == 60
    assert acceptance_store.load(model(), 4) is None


def test_a_model_whose_layers_do_not_stream_has_no_copy(capsys):
    assert run("self") == 2
    assert "all layers fit into memory here" in capsys.readouterr().err


@pytest.mark.usefixtures("streams")
def test_there_are_no_files_to_keep_the_figures_beside(capsys):
    assert run("self", "--output", "beside") == 2
    assert "a copy has no files" in capsys.readouterr().err
