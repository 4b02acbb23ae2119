"""`scripts/train_head.py` trains a head that predicts its target, goes on where it stopped, and writes what is read."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
sys.path.insert(0, str(SCRIPTS.parent))

import heads.unrolled  # noqa: E402
import train_head  # noqa: E402
from heads.target_states import TargetStates  # noqa: E402
from heads.unrolled import Wanted, step_mask, unrolled  # noqa: E402

from loaders.checkpoint.read_spec import read_spec  # noqa: E402
from loaders.heads.eagle3 import Eagle3Head, build_eagle3  # noqa: E402
from loaders.heads.eagle3_config import read_eagle3  # noqa: E402
from loaders.heads.head_files import read_head  # noqa: E402
from loaders.heads.target_facts import TargetFacts  # noqa: E402
from offload_runtime.options.run_options import DEMO_TARGET  # noqa: E402
from tests.samples.head_samples import randomize  # noqa: E402

SMALL = ["--model", str(DEMO_TARGET), "--window", "16", "--batch", "2", "--intermediate-size", "64", "--taps", "1,3,5"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with few tokens, of which a small head learns something in a few steps."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("def add(a, b):\n    return a + b\n\n\n" * 120)
    return file


def run(text: Path, output: Path, *more: str) -> str:
    assert train_head.main([*SMALL, "--text", str(text), "--output", str(output), *more]) == 0
    return (output / "config.json").read_text()


def test_learns_and_goes_on(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(text, tmp_path / "short", "--steps", "1")
    first = float(capsys.readouterr().out.split("same argmax ")[1].split(",")[0])
    run(text, tmp_path / "long", "--steps", "40", "--unroll", "2")
    whole = capsys.readouterr()
    learnt = float(whole.out.split("same argmax ")[1].split(",")[0])
    assert learnt > first + 0.2
    assert whole.out.count("held out") == 2
    again = run(text, tmp_path / "long", "--steps", "40", "--unroll", "2")
    assert "step " not in capsys.readouterr().err, "nothing is left to do"
    assert json.loads(again)["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 2, 4]


def test_what_is_written_is_read(text: Path, tmp_path: Path) -> None:
    run(text, tmp_path, "--steps", "1", "--draft-vocabulary", "100")
    target = TargetFacts.of(read_spec(DEMO_TARGET))
    files = read_head(tmp_path, target)
    assert files.config.taps == (1, 3, 5) and files.token_ids is not None and len(files.token_ids) == 100
    assert not files.own_embeddings
    stored = load_file(tmp_path / "model.safetensors")
    table = load_file(DEMO_TARGET / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored["lm_head.weight"], table[torch.from_numpy(files.token_ids)])
    run(text, tmp_path / "whole", "--steps", "1")
    assert not read_head(tmp_path / "whole", target).own_output, "the target's output layer is used"


def test_steps_are_what_a_tree_computes(tmp_path: Path) -> None:
    """Row i of step s equals a pass over the text up to i and then s rows, each reading the head's own output."""
    target = TargetStates(DEMO_TARGET, (1, 3, 5), torch.float32, "cpu")
    head = _random_head(target)
    tokens = torch.randint(0, 4096, (1, 12), generator=torch.Generator().manual_seed(0))
    states, logits = target(tokens)
    results = unrolled(head, states, tokens, Wanted.of(logits, None), 3)
    assert len(results) == 3
    with torch.no_grad():
        for step in range(3):
            log_head = torch.stack([_by_passes(head, states, tokens, row, step) for row in range(11 - step)])
            log_target = logits[0, 1 + step :].log_softmax(-1)
            wanted = (log_target.exp() * (log_target - log_head)).sum(-1).mean()
            torch.testing.assert_close(results[step].loss.detach(), wanted, atol=1e-4, rtol=1e-4)


def test_logits_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TargetStates(DEMO_TARGET, (1, 3, 5), torch.float32, "cpu")
    head = _random_head(target)
    tokens = torch.randint(0, 4096, (2, 12), generator=torch.Generator().manual_seed(0))
    states, logits = target(tokens)
    wanted, found = Wanted.of(logits, None), []
    for most in (1 << 25, 4096 * 5):
        monkeypatch.setattr(heads.unrolled, "_MOST_LOGITS", most)
        head.zero_grad()
        results = unrolled(head, states, tokens, wanted, 3, overlap=True)
        sum(result.loss for result in results).backward()
        found.append((results, head.fc.weight.grad.clone()))
    (whole, gradient), (parts, other) = found
    torch.testing.assert_close(gradient, other)
    for one, two in zip(whole, parts):
        assert (two.loss.item(), two.agreed, two.overlap) == pytest.approx((one.loss.item(), one.agreed, one.overlap))


def test_rows_whose_likeliest_token_the_head_lacks_do_not_count() -> None:
    logits, ids = torch.randn(1, 400, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 5, 8])
    wanted = Wanted.of(logits, ids)
    own = torch.distributions.Categorical(logits=logits[..., ids])
    torch.testing.assert_close(wanted.probabilities, own.probs)
    torch.testing.assert_close(wanted.entropy, own.entropy())
    assert torch.equal(wanted.counted, torch.isin(logits.argmax(-1), ids))
    assert torch.equal(ids[wanted.likeliest][wanted.counted], logits.argmax(-1)[wanted.counted])


def test_text_of_later_rows_is_not_seen() -> None:
    mask = step_mask(4, 2, "cpu")[0, 0]
    assert mask[1].nonzero().flatten().tolist() == [0, 1, 5, 9]


def _by_passes(head: Eagle3Head, states: torch.Tensor, tokens: torch.Tensor, row: int, step: int) -> torch.Tensor:
    """Log-probabilities [vocab] after row `row` and `step` drafted rows, by one pass for each."""
    features = head.fuse(states[:, : row + 1])
    for last in range(step + 1):
        count = row + 1 + last
        out = head(tokens[:, 1 : 1 + count], torch.arange(count)[None], features=features)
        features = torch.cat((features, out.features[:, -1:]), dim=1)
    return out.logits[0, -1].log_softmax(-1)


def _random_head(target: TargetStates) -> Eagle3Head:
    facts = TargetFacts("target", 5, 256, 4096)
    options = train_head._parser().parse_args(["--model", "x", "--output", "y"])
    config = train_head._config(options, TargetStates.config_of(DEMO_TARGET), 4096, (1, 3, 5))
    head = build_eagle3(read_eagle3(Path("config.json"), config, facts), torch.float32, "sdpa", own_output=False)
    randomize(head)
    head.share(target.embeddings, target.output)
    return head


def test_needs_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_head.main(["--model", str(DEMO_TARGET), "--output", str(tmp_path)]) == 2
    assert "either --text or --demo-corpus" in capsys.readouterr().err
