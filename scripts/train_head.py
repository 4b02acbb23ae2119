"""Train an EAGLE-3 head (arXiv 2503.01840) for a target on given text, on one GPU or a CPU.

    python scripts/train_head.py --model DIR --text CHATS.jsonl BOOK.txt --output HEAD
    python scripts/train_head.py --model offload_runtime/demo_pair/target --demo-corpus --output /tmp/head

The head learns the target's distributions by KL divergence, over several steps in which it reads its own output as in a
tree. Embeddings and output layer are the target's; with --draft-vocabulary N the head can propose the N tokens that are
most frequent in the text, and its file holds their rows of the output layer. The authors of EAGLE train on text that
the target has written.

`--draft HEAD` then drafts with it. An interrupted run goes on from its checkpoint in --work-dir.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads its threads
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import adder, listed, one_of, script_parser

from offload_runtime.errors import UsageError
from offload_runtime.options.command_line import run_command

if TYPE_CHECKING:
    from heads.target_states import TargetStates
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loaders.heads.eagle3 import Eagle3Head

DTYPES = ("float32", "bfloat16", "float16")
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 1 << 16  # of the text's tokens, from its end
HELD_OUT_BATCHES = 8
DECAY_SHARE = 0.5  # the last part of a run, in which the learning rates fall


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("train_head", __doc__)
    add = adder(parser)
    add("--model", metavar="DIR", type=Path, help="the target")
    add("--output", metavar="DIR", type=Path, help="where the head is written")
    add("--text", metavar="FILE", type=Path, nargs="+", help="plain text, or conversations (.jsonl)")
    add("--demo-corpus", action="store_true", help="train on the demonstration pair's conversations")
    add("--work-dir", metavar="DIR", type=Path, help="checkpoints of the run; OUTPUT/checkpoint where it is not given")
    add("--tokens", default=1 << 30, least=1 << 10, help="most tokens of text that are read")
    add("--steps", default=1000, help="steps of the optimizer")
    add("--batch", default=8, help="windows in each step")
    add("--window", default=256, least=8, help="tokens of a window")
    add("--unroll", default=4, help="steps in which the head reads its own output")
    add("--decay", metavar="X", type=float, default=0.8, help="weight of each unrolled step against the one before")
    add("--rate", metavar="X", type=float, default=0.7, help="share of the full learning rates")
    add("--taps", metavar="N,N,N", type=listed(int), help="hidden states that the head reads, after so many layers of "
        "the target (default: 2, half, and all but three)")  # fmt: skip
    add("--draft-vocabulary", metavar="N", type=int, help="tokens that the head can propose; all where not given")
    add("--intermediate-size", metavar="N", type=int, help="of the head's MLP; the target's where not given")
    add("--dtype", type=one_of(DTYPES, "type"), default="bfloat16", help="of the written weights")
    add("--target-dtype", type=one_of(DTYPES, "type"), default="float32", help="that the target computes in")
    add("--device", help="cpu or cuda; cuda where there is one")
    add("--threads", default=1, help="CPU threads")
    add("--seed", metavar="N", type=int, default=0, help="of weights and batches")
    return parser


def train_head(options: argparse.Namespace) -> int:
    """Train, write and measure."""
    if not options.model or not options.output or bool(options.text) == options.demo_corpus:
        raise UsageError("give --model, --output, and either --text or --demo-corpus")
    import torch
    from heads.training import Windows, held_out, train, write_head
    from toolkit.training import Run
    from transformers import AutoTokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    tokens, kept = _texts(options, tokenizer)
    print(f"{len(tokens):,} training tokens, {len(kept):,} held out", file=sys.stderr, flush=True)
    head, target = _untrained(options, tokens, device)
    work = options.work_dir or options.output / "checkpoint"
    windows = Windows(options.batch, options.window, options.unroll, options.decay, options.seed)
    run = Run("head", options.steps, work / "head.pt", DECAY_SHARE, options.rate)
    if len(tokens) < (windows.batch + 1) * windows.window:
        least = f"a step of {windows.batch} windows of {windows.window}"
        raise UsageError(f"{len(tokens):,} tokens of text are less than {least}")
    train(head, target, tokens, windows, run)
    write_head(head, options.output, getattr(torch, options.dtype))
    for number, result in enumerate(held_out(head, target, kept, windows, HELD_OUT_BATCHES)):
        print(
            f"held out, {number} tokens below the text: {result.loss:.3f} nats, same argmax {result.agreed:.3f}, "
            f"1 - total variation {result.overlap:.3f}"
        )
    return 0


def _texts(options: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase") -> "tuple[Tensor, Tensor]":
    """The tokens for training, and those that are held out."""
    from heads.texts import tokens_of
    from toolkit.training import encoded

    if options.demo_corpus:
        from demo_corpus import build_corpus

        train_texts, held_out_texts = build_corpus(options.seed)
        return encoded(train_texts, tokenizer)[: options.tokens], encoded(held_out_texts, tokenizer)[:MOST_HELD_OUT]
    tokens = tokens_of(options.text, tokenizer, options.tokens)
    held_out = min(MOST_HELD_OUT, int(len(tokens) * HELD_OUT_SHARE))
    return tokens[: len(tokens) - held_out], tokens[len(tokens) - held_out :]


def _untrained(options: argparse.Namespace, tokens: "Tensor", device: str) -> "tuple[Eagle3Head, TargetStates]":
    """A fresh head with the target's output layer and final norm, and the target."""
    import torch
    from heads.target_states import TargetStates
    from heads.texts import frequent_tokens

    from loaders.checkpoint.read_spec import read_spec
    from loaders.heads.eagle3 import build_eagle3
    from loaders.heads.eagle3_config import read_eagle3
    from loaders.heads.target_facts import TargetFacts

    facts = TargetFacts.of(read_spec(options.model))
    target_config = TargetStates.config_of(options.model)
    taps = options.taps or (2, facts.layers // 2, max(0, facts.layers - 3))
    config = read_eagle3(options.output / "config.json", _config(options, target_config, facts.vocab_size, taps), facts)
    target = TargetStates(options.model, config.taps, getattr(torch, options.target_dtype), device)
    head = build_eagle3(config, torch.float32, "sdpa", own_output=config.maps_tokens)
    torch.nn.Module.to(head, device)
    with torch.no_grad():
        head.norm.load_state_dict(target.final_norm.state_dict())
    if head.lm_head is not None:
        head.token_ids = frequent_tokens(tokens, config.draft_vocab_size, facts.vocab_size).to(device)
        rows = target.output.weight.index_select(0, head.token_ids)
        head.lm_head.load_state_dict({"weight": rows})
        head.lm_head.requires_grad_(False)
    head.share(target.embeddings, target.output)
    return head, target


def _config(
    options: argparse.Namespace, target: dict[str, Any], vocab_size: int, taps: Sequence[int]
) -> dict[str, Any]:
    """The `config.json` of a head with one Llama layer of the target's sizes."""
    heads = target["num_attention_heads"]
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": target["hidden_size"],
        "intermediate_size": options.intermediate_size or target["intermediate_size"],
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": target.get("num_key_value_heads") or heads,
        "head_dim": target.get("head_dim") or target["hidden_size"] // heads,
        "hidden_act": "silu",
        "rms_norm_eps": target.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": target["max_position_embeddings"],
        "rope_parameters": {"rope_type": "default", "rope_theta": _rope_theta(target)},
        "vocab_size": vocab_size,
        **({"draft_vocab_size": options.draft_vocabulary} if options.draft_vocabulary else {}),
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in taps]},
    }


def _rope_theta(target: dict[str, Any]) -> float:
    return float((target.get("rope_parameters") or {}).get("rope_theta") or target.get("rope_theta") or 10000.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    return run_command(lambda: train_head(options))


if __name__ == "__main__":
    sys.exit(main())
