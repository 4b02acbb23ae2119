"""What heads in files of their own have in common: texts side by side, long prompts, memory, the plan."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loaders.checkpoint.spec import aligned
from offload_runtime import OffloadRuntime
from offload_runtime.chat import main as chat
from offload_runtime.measure_acceptance.measure import WrittenReply, _both_logits
from tests.offload_runtime.exactness.drafts import test_dflash_heads as dflash
from tests.offload_runtime.exactness.drafts import test_eagle3_heads as eagle3
from tests.offload_runtime.exactness.drafts.head_texts import OPTIONS, Readings, long_readings, shared_readings
from tests.samples.head_samples import write_dflash, write_eagle3
from tests.samples.tiny_models import PROMPT, checkpoint, greedy, reference

Furthest = Callable[[Readings], float]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The directory of a head of each kind, and how far logits are from those of a pass over the whole text."""

    @cache
    def write(kind: str) -> tuple[Path, Furthest]:
        directory, target = tmp_path_factory.mktemp("head"), checkpoint("llama")
        if kind == "EAGLE-3":
            head = write_eagle3(directory, token_ids=torch.arange(0, 96, 2))
            return directory, lambda read: eagle3.furthest(head, target, read)
        block = write_dflash(directory, second=kind == "DFlash 2")
        return directory, lambda read: dflash.furthest(block, target, read)

    return write


every_kind = pytest.mark.parametrize("kind", ["EAGLE-3", "DFlash", "DFlash 2"])


@pytest.mark.parametrize(
    ("kind", "streamed"), [("EAGLE-3", False), ("EAGLE-3", True), ("DFlash", True), ("DFlash 2", False)]
)
def test_texts_that_share_passes_are_their_own(kind: str, streamed: bool, written) -> None:
    head, furthest = written(kind)
    for read in shared_readings(checkpoint("llama"), head, streamed):
        assert furthest(read[::7]) < eagle3.CLOSE


@every_kind
def test_long_prompts_are_read_in_pieces_and_the_head_follows(kind: str, written) -> None:
    head, furthest = written(kind)
    assert furthest(long_readings(checkpoint("llama"), head)[::4]) < eagle3.CLOSE


@every_kind
def test_texts_of_one_token(kind: str, written) -> None:
    head, _ = written(kind)
    target = checkpoint("llama")
    with OffloadRuntime.from_pretrained(target, head, device="cpu", **OPTIONS) as runtime:
        assert runtime.generate([5], max_new_tokens=20, temperature=0).token_ids == greedy(target, (5,), 20)


@every_kind
def test_planned_memory_is_what_is_used(kind: str, written) -> None:
    head, _ = written(kind)
    with OffloadRuntime.from_pretrained(checkpoint("llama"), head, device="cpu", **OPTIONS, parallel=2) as runtime:
        runtime.generate(PROMPT, max_new_tokens=8, temperature=0)
        items = {item.name: item.device_bytes for item in runtime.plan.items}
        assert runtime._models.memory.peak_bytes == sum(items.values()) - items["read buffers"]
        weights = [one for name, one in load_file(head / "model.safetensors").items() if name not in ("d2t", "t2d")]
        assert items[f"{kind} head {head.name} (float32)"] == sum(aligned(one.numel() * 4) for one in weights)


@every_kind
def test_distributions_along_a_text_are_those_of_the_head(kind: str, written) -> None:
    """As they are measured: next to the target's, piece by piece."""
    head, furthest = written(kind)
    text = WrittenReply(0, list(PROMPT), [7, 30, 2, 61, 9, 9, 14, 80, 3])
    whole = [*PROMPT, *text.reply]
    with OffloadRuntime.from_pretrained(checkpoint("llama"), head, device="cpu", **OPTIONS) as runtime:
        models = runtime._models
        pieces = list(_both_logits(models.target.model, models.draft, text, 5, 4))
    assert [len(piece) for piece, _ in pieces] == [4, 4, 1]
    rows = torch.cat([piece for _, piece in pieces])
    ends = range(len(PROMPT), len(whole))
    assert furthest([(whole[:end], row) for end, row in zip(ends, rows)]) < eagle3.CLOSE
    own = reference(checkpoint("llama"))(torch.tensor([whole])).logits[0, len(PROMPT) - 1 : -1]
    torch.testing.assert_close(torch.cat([piece for piece, _ in pieces]), own.detach(), atol=1e-3, rtol=1e-3)


def test_the_plan_names_the_head(written, capsys: pytest.CaptureFixture[str]) -> None:
    head, _ = written("EAGLE-3")
    assert chat(["--model", str(checkpoint("llama")), "--draft", str(head), "--device", "cpu", "--plan"]) == 0
    assert f"EAGLE-3 head {head.name}" in capsys.readouterr().out
