"""Train the bundled demonstration pair: a target of 4.5 million parameters and a draft of 0.7 million.

    python scripts/train_demo_pair.py --output offload_runtime/demo_pair --work-dir /tmp/demo_pair

Tokenizer, target and draft are trained on conversations about the standard library of the running interpreter
(`demo_corpus.py`); the draft is then distilled from the target. Both are written as bf16 safetensors that transformers
loads without further code, together with the draft's acceptance (`draft/acceptance.json`, measured by
`offload_runtime.measure_acceptance`).

The same seed, interpreter and torch build give the same weights on a CPU; on CUDA, up to the kernels' rounding. The
default steps and the measurements took about 65 CPU-minutes on one thread of a busy machine of two x86-64 cores, 95
minutes by the clock. An interrupted run goes on from its last checkpoint in --work-dir.
"""

import argparse
import copy
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads its threads; see `command_line`
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

import torch
import torch.nn.functional as F
from demo_corpus import Message, build_corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from toolkit.training import Run, batch_of, encoded, train
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from offload_runtime.measure_acceptance import main as measure_acceptance
from offload_runtime.measure_acceptance.prompts import STANDARD_LIBRARY

VOCABULARY = 4096
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WINDOW, LONG_WINDOW, CONTEXT = 512, 2048, 4096  # tokens: training windows, advertised context
STEP_TOKENS, BATCH_TOKENS = 2048, 4096  # per optimizer step, and per batch of held-out text
LONG_SHARE, DECAY_SHARE = 0.1, 0.35  # last parts of a run: long windows; falling learning rate
DISTILL_RATE = 0.7

Loss = Callable[[LlamaForCausalLM, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ModelSize:
    """Sizes of one Llama model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int


TARGET = ModelSize(layers=5, hidden=256, heads=4, kv_heads=2, ffn=640)
DRAFT = ModelSize(layers=1, hidden=128, heads=4, kv_heads=2, ffn=384)


# ---- tokenizer and data


def train_tokenizer(conversations: list[list[Message]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama-3-style splitting, the role tokens and the chat template."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message["content"] for conversation in conversations for message in conversation)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=ROLES,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def training_batch(stream: torch.Tensor, step: int, steps: int, seed: int) -> torch.Tensor:
    """The windows of one step, int64 [rows, window + 1]; long ones come last, to meet a longer context's distances."""
    window = LONG_WINDOW if step >= steps * (1 - LONG_SHARE) else WINDOW
    return batch_of(stream, step, seed, STEP_TOKENS // window, window, more=1)


def held_out_batches(stream: torch.Tensor, window: int) -> Iterator[torch.Tensor]:
    """Consecutive windows, int64 [rows, window + 1]; the last incomplete batch is left out."""
    rows = BATCH_TOKENS // window
    windows = stream[: (len(stream) - 1) // window * window + 1].unfold(0, window + 1, window)
    for first in range(0, len(windows) - rows + 1, rows):
        yield windows[first : first + rows]


# ---- training


def build_model(shape: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised Llama in float32, embeddings tied."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def distillation_loss(teacher: LlamaForCausalLM) -> Loss:
    """KL divergence from the teacher to the student, in nats a token, mixed with a little cross-entropy."""

    def loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(batch[:, :-1], use_cache=False).logits.flatten(0, 1).log_softmax(-1)
        got = model(batch[:, :-1], use_cache=False).logits.flatten(0, 1).log_softmax(-1)
        divergence = F.kl_div(got, wanted, reduction="batchmean", log_target=True)
        return 0.9 * divergence + 0.1 * F.nll_loss(got, batch[:, 1:].flatten())

    return loss


def next_token_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token; batch: [rows, window + 1]."""
    logits = model(batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor, window: int = WINDOW) -> float:
    """Mean cross-entropy in nats a token over the held-out stream, cut into windows."""
    losses = [next_token_loss(model, batch.to(model.device)).item() for batch in held_out_batches(stream, window)]
    return sum(losses) / len(losses)


# ---- files and command line


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Write model in bf16, generation config, tokenizer and chat template; return the model as the files hold it."""
    rounded = copy.deepcopy(model)
    rounded.bfloat16()
    rounded.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.to(loaded, model.device)
    return loaded


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled demonstration pair.")
    parser.add_argument("--output", type=Path, required=True, help="folder for target/ and draft/")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--target-steps", type=int, default=1400, help="steps of 2,048 tokens")
    parser.add_argument("--draft-steps", type=int, default=400)
    parser.add_argument("--distill-steps", type=int, default=500)
    parser.add_argument("--held-out-tokens", type=int, default=2**16, help="held-out tokens measured, at most")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    train_texts, held_out_texts = build_corpus(options.seed)
    tokenizer = train_tokenizer(train_texts)
    stream, held_out = (encoded(texts, tokenizer).long() for texts in (train_texts, held_out_texts))
    held_out = held_out[: options.held_out_tokens]
    print(f"{len(stream):,} training tokens, {len(held_out):,} held out", file=sys.stderr, flush=True)

    def fit(model: LlamaForCausalLM, name: str, steps: int, loss: Loss, rate: float = 1.0) -> None:
        run = Run(name, steps, options.work_dir / f"{name}.pt", DECAY_SHARE, rate)
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]

        def loss_at(step: int) -> tuple[torch.Tensor, str]:
            return loss(model, training_batch(stream, step, steps, options.seed).to(model.device)), ""

        train(model, matrices, others, run, loss_at)

    target = build_model(TARGET, tokenizer, options.seed).to(options.device)
    fit(target, "target", options.target_steps, next_token_loss)
    draft = build_model(DRAFT, tokenizer, options.seed).to(options.device)
    fit(draft, "draft", options.draft_steps, next_token_loss)
    losses = {"draft before distillation": held_out_loss(draft, held_out)}
    fit(draft, "distilled", options.distill_steps, distillation_loss(target), DISTILL_RATE)

    target = save_model(target, tokenizer, options.output / "target")
    draft = save_model(draft, tokenizer, options.output / "draft")
    losses["draft after distillation"] = held_out_loss(draft, held_out)
    for window in (WINDOW, LONG_WINDOW, CONTEXT):
        losses[f"target, windows of {window} tokens"] = held_out_loss(target, held_out, window)
    for name, loss in losses.items():
        print(f"held-out loss, {name}: {loss:.3f} nats a token (perplexity {math.exp(loss):.1f})")
    prompts = options.work_dir / "prompts.txt"
    prompts.write_text("\n".join(STANDARD_LIBRARY))
    pair = ("--model", str(options.output / "target"), "--draft", str(options.output / "draft"))
    return measure_acceptance([*pair, "--prompts", str(prompts), "--output", "beside", "--quiet"])


if __name__ == "__main__":
    sys.exit(main())
