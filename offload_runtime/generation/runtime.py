"""The facade: load a target and an optional draft, then generate."""

import os
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from loaders.checkpoint.model_source import model_source
from loaders.progress import StageProgress
from loaders.tokenizers.load import check_same_tokens
from offload_runtime.errors import OffloadError, UsageError
from offload_runtime.generation.call_limits import CallLimits, checked_top_logprobs, seeded
from offload_runtime.generation.config_fields import unapplied_note
from offload_runtime.generation.decode import Decoder, Step
from offload_runtime.generation.defaults import SAMPLING_NAMES, model_end_tokens, override, read_generation_defaults
from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.out_of_memory import (
    free_unused_memory,
    out_of_memory_explained,
    out_of_memory_recognised,
    tightened,
)
from offload_runtime.generation.reply import Reply, ReplyStats
from offload_runtime.generation.request_rules import RequestRules
from offload_runtime.generation.running_text import RunningText
from offload_runtime.generation.shared_passes import CANNOT_SHARE, SharedPasses
from offload_runtime.generation.turns import Turns
from offload_runtime.generation.writer import Request
from offload_runtime.grammar.grammars import Grammars
from offload_runtime.loading.fetching import Download
from offload_runtime.loading.models import load_models
from offload_runtime.loading.policy_choice import tree_policy
from offload_runtime.loading.quantize_weights import with_packed_files
from offload_runtime.model.model import Model, never
from offload_runtime.options.fields import takes_arguments_of, takes_fields_of
from offload_runtime.options.run_options import RunOptions, check_template_arguments, resolved
from offload_runtime.planning.planning import Preparation, prepare
from offload_runtime.prompt_cache.opening import open_folder, open_prompt_cache
from offload_runtime.speculation.learned_acceptance import LearnedAcceptance
from offload_runtime.speculation.target import PassProgress
from offload_runtime.text.prompt import Prompt, chat_tokenizer, encode_turn, messages_of
from offload_runtime.text.reply_text import ReplyText
from scheduler.machine.cuda import current_device
from scheduler.plan.plan import Plan
from sequoia_tree.shaping.order import Bounds
from sequoia_tree.shaping.settings import Sampling


class OffloadRuntime:
    """A target, with an optional draft, ready to generate. A context manager. Threads that share it take turns.

    plan: what is stored where. packing: the quantization made for this run, None without one. last_reply: the newest
    reply, also while it is generated and after an interruption.
    """

    @classmethod
    @takes_fields_of(RunOptions)
    def from_pretrained(cls, given: RunOptions) -> "OffloadRuntime":
        """Plan, download what is missing and load.

        Models are directories, GGUF files, or names on the hub; a Path is never a name. Memory is in bytes, or text
        like "20GiB". Raises an OffloadError that says what is wrong and what would work, and TypeError for an unknown
        option.
        """
        options = resolved(given)
        preparation = prepare(options)
        download = Download.of(preparation.options)
        if download.models:
            download.run(options.progress)
            preparation = prepare(preparation.options)
        for note in (unapplied_note(preparation.target.spec.directory), preparation.plan.slow_dequantizing):
            if note:
                warnings.warn(note, stacklevel=3)
        return cls(preparation, options.progress)

    def __init__(self, preparation: Preparation, progress: StageProgress | None = None):
        self._prompt_folder = open_folder(preparation.options)
        if preparation.draft:
            _check_draft(preparation)
        preparation = with_packed_files(preparation, progress)
        options, self.packing = preparation.options, preparation.packing
        self._preparation, self._progress, self._tightened = preparation, progress, False
        self._directory = preparation.target.spec.directory
        self._known = LearnedAcceptance(options.model, preparation.drafter) if preparation.drafter else None
        self._resources = ExitStack()
        # also when this object is collected, or the program ends
        self._close = weakref.finalize(self, _close_in, os.getpid(), self._resources)
        self._has_text = model_source(self._directory).has_tokenizer()
        self._defaults = read_generation_defaults(self._directory)
        self._rules = RequestRules(self._defaults.token_rules)
        self.last_reply = Reply()
        self._turns = Turns()
        try:
            with out_of_memory_recognised():
                self._load(preparation)
            return
        except torch.OutOfMemoryError:
            pass  # its traceback keeps what was loaded alive until this block is left
        self._load_tightened(preparation.plan)

    def _load(self, preparation: Preparation) -> None:
        self._models = load_models(preparation, self._progress)
        self._resources.callback(self._models.close)
        self.plan = self._models.plan
        policy = tree_policy(self._models, preparation.options, self._known)
        self._stored = open_prompt_cache(self._prompt_folder, preparation, self._models, self._turns.between)
        if self._stored:
            self._resources.callback(self._stored.close)
        self._decoder = Decoder(self._models.target, self._models.draft, policy, self._stored)
        if self.parallel < self.plan.texts:
            warnings.warn(f"{self.parallel} of {self.plan.texts} texts at a time: {CANNOT_SHARE}", stacklevel=3)

    def _load_tightened(self, plan: Plan) -> None:
        """Load again with less device memory than `plan`. Done once: if that is not enough, an error is raised.

        If no smaller plan fits, the loaded models stay; if loading fails, this runtime is closed.
        """
        preparation = tightened(self._preparation, plan)
        self._tightened = True
        self._resources.close()
        free_unused_memory()
        try:
            with out_of_memory_explained(preparation.plan):
                self._load(preparation)
        except BaseException:
            self._close()
            raise

    @property
    def generation_defaults(self) -> Sampling:
        """The sampling used for values that a call leaves out."""
        return self._defaults.sampling

    def default_of(self, name: str) -> object:
        """The default of an argument of `stream`, for display."""
        if name in SAMPLING_NAMES:
            return getattr(self._defaults.sampling, name)
        others = {"max_new_tokens": self._defaults.max_new_tokens, "stop": self._defaults.stop_strings, "seed": "fresh"}
        return others.get(name) or "none"

    @property
    def context_length(self) -> int:
        """Most tokens in prompt and reply together."""
        return self.plan.context_length

    @property
    def parallel(self) -> int:
        """Most texts that share passes. One for models whose state or rotations belong to one text."""
        return self._decoder.places

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer. Raises ModelFilesError if the checkpoint has none."""
        return chat_tokenizer(self._directory, self._preparation.options.chat_template)

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return model_end_tokens(self._directory, self._models.target.model.config.eos_token_id)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars((lambda: self.tokenizer) if self._has_text else None, self._models.target.model.vocab_size)

    def _begin(
        self,
        prompt: Prompt,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logit_bias: Mapping[int, float] | None = None,
        dry_sequence_breakers: str | Sequence[str] | None = None,
        end_token_ids: Collection[int] = (),
        should_stop: Callable[[], bool] = never,
        split_reasoning: bool = True,
        top_logprobs: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        **sampling: float | int | None,
    ) -> RunningText:
        """The text of a call, checked and encoded; the arguments are those of `stream`."""
        self._check_open()
        values = override(self._defaults.sampling, **sampling)
        split = split_reasoning and not isinstance(prompt, str)
        offered = self._limits.tools(tools, tool_choice, split, response_format)
        variables = self._template_arguments(template_arguments)
        ids, turn_ends = encode_turn(prompt, lambda: self.tokenizer, variables, offered)
        self._limits.check_prompt(ids)
        stops, room = self._limits.stop_strings(stop), self._limits.room(ids, max_new_tokens)
        logprobs = checked_top_logprobs(top_logprobs)
        model, ends = self._models.target.model, self.end_token_ids.union(end_token_ids, turn_ends)
        bounds = Bounds(ids, ends, len(ids) + room, model.vocab_size, model.device)
        tokenizer = (lambda: self.tokenizer) if self._has_text else None
        values = self._rules.bind(values, bounds, logit_bias, dry_sequence_breakers, tokenizer)
        if offered.forced:
            values = self._grammars.bind_call(offered, messages_of(prompt), variables, values, bounds)
        else:
            values = self._grammars.bind(response_format, values, bounds, split, offered)
        generator = seeded(torch.Generator(model.device), seed)
        request = Request(ids, values, room, ends, generator, should_stop, seed is not None, top_logprobs=logprobs)
        text = ReplyText(self.tokenizer, ids, stops, split, offered) if self._has_text else None
        reply = Reply(seed=generator.initial_seed(), stats=ReplyStats(prompt_tokens=len(ids)))
        return RunningText(GenerationRequest(prompt), request, text, reply)

    @takes_arguments_of(_begin)
    def stream(self, *arguments: Any, **named: Any) -> Iterator[Step]:
        """Generate step by step; each step has the tokens and the text of one pass.

        sampling: fields of `sequoia_tree.verification.sampling.Sampling`: temperature, top_p, top_k, min_p, …; those
        left out or None come from the model's generation config. max_new_tokens: if neither the call nor the config
        limits it, generation ends at an end token or a full context. seed: makes the call repeatable; None draws a
        fresh one. stop: the answer ends before the first of these strings. logit_bias: added to the logits of tokens.
        dry_sequence_breakers: texts that end a repeated sequence of the DRY penalty. end_token_ids: end tokens in
        addition to the model's. should_stop: checked between two layers; the reply then ends "interrupted" and keeps
        its tokens. split_reasoning: the model's thinking goes to `reasoning` instead of `text`, unless the prompt is
        plain text. top_logprobs: from 0 to 20; steps and the reply then hold the log-probability of every token, and of
        so many likeliest tokens at its place, by the model's own distribution. response_format: as in OpenAI's
        interface, holds the answer to JSON or to a schema. template_arguments: variables of the chat template, which go
        before those of `from_pretrained`. tools: those that the model may call, in OpenAI's form; its calls go to
        `tool_calls` instead of `text`. tool_choice: "auto", "none", "required" or a function: the reply is then a call
        of it. Raises UsageError or PromptError before anything runs. Several streams may be open, in one or several
        threads: passes alternate, and a stream that finds another text in the caches reads its own again.
        """
        text = self._begin(*arguments, **named)
        with self._turns.hold():
            self.last_reply = text.reply
        return self._stream(text)

    def _template_arguments(self, more: Mapping[str, Any] | None) -> dict[str, Any]:
        check_template_arguments(more or {})
        return {**self._preparation.options.template_arguments, **(more or {})}

    def encode(
        self,
        prompt: Prompt,
        template_arguments: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that a prompt becomes in `stream`, however many. Raises UsageError or PromptError."""
        offered = self._limits.tools(tools, tool_choice, not isinstance(prompt, str))
        return encode_turn(prompt, lambda: self.tokenizer, self._template_arguments(template_arguments), offered)[0]

    @takes_arguments_of(stream)
    def generate(self, *arguments: Any, **named: Any) -> Reply:
        """The whole reply at once; arguments as for `stream`. Other threads wait until it is complete."""
        with self._turns.hold():
            for _ in self.stream(*arguments, **named):
                pass
            return self.last_reply

    def generate_many(self, prompts: Iterable[Prompt], **named: Any) -> list[Reply]:
        """The whole replies to several prompts, in order, written side by side; arguments as for `stream`."""
        requests = [GenerationRequest(prompt, named) for prompt in prompts]
        with self.shared_passes() as passes:
            replies = {text.request: text.reply for text, _ in passes.run(requests)}
        return [replies[request] for request in requests]

    def stream_many(self, requests: Iterable[GenerationRequest]) -> Iterator[tuple[GenerationRequest, Step]]:
        """The steps of several requests as their passes end; a request is taken once there is a place for it.

        Raises the error of the first text that fails, as `stream` would.
        """
        with self.shared_passes() as passes:
            for text, step in passes.run(requests):
                yield text.request, step

    def shared_passes(self) -> SharedPasses:
        """For texts that join and leave between passes, such as those of a server."""
        return SharedPasses(self)

    @property
    def progress(self) -> PassProgress | None:
        """Progress of the target's current pass, None between passes; for display by another thread."""
        return self._models.target.progress

    @property
    def target_model(self) -> Model:
        """The model of the target, to watch its passes."""
        return self._models.target.model

    def forget(self) -> None:
        """Drop the texts in the KV caches: the next prompt is read in full, but for what a prompt cache has of it."""
        with self._turns.take():
            self._decoder.forget()

    @contextmanager
    def without_streaming(self) -> Iterator[None]:
        """Within the block, no weights stream: replies are meaningless, and passes take the computing time alone."""
        with self._turns.hold(), self._stored.paused() if self._stored else nullcontext():
            self.forget()
            try:
                with self._models.target.model.without_streaming():
                    yield
            finally:
                self.forget()

    def close(self) -> None:
        """Stop the streaming threads and free the models' memory, after the current pass of another thread.

        Does nothing in a fork of the process that loaded the models.
        """
        if self._turns.in_fork:
            return
        with self._turns.take():
            self._close()

    def __enter__(self) -> "OffloadRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, request: GenerationRequest) -> RunningText:
        """A text to hand to `advance` until it is done. Raises UsageError or PromptError if it cannot run."""
        text = self._begin(request.prompt, **request.arguments)
        text.request = request
        return text

    def advance(self, texts: Sequence[RunningText], in_pieces: bool = True) -> list[tuple[RunningText, Step]]:
        """One pass: a step of each text that is not done, but of those that it ends with an error.

        in_pieces: read at most as much of a long prompt as one pass has room for, even of a single text.
        """
        texts = [text for text in texts if not text.done]
        if not texts:
            return []
        with self._turns.take(), current_device(self._models.target.model.device):
            self._check_open()
            outcomes = self._pass(texts, in_pieces)
        steps = []
        for text, outcome in zip(texts, outcomes):
            if isinstance(outcome, Step):
                steps.append((text, text.take(outcome, self._models.memory.peak_bytes)))
            else:
                text.error = outcome
        return steps

    def leave(self, text: RunningText) -> None:
        """End a text that is not advanced any more."""
        if self._turns.in_fork:
            return
        with self._turns.hold():
            text.end()

    def _stream(self, text: RunningText) -> Iterator[Step]:
        try:
            while not text.done:
                for _, step in self.advance([text], in_pieces=False):
                    yield step
            if text.error is not None:
                raise text.error
        finally:
            self.leave(text)

    def _pass(self, texts: Sequence[RunningText], in_pieces: bool) -> list[Step | OffloadError]:
        """A pass of the decoder. If the device runs out of memory, loads again with less of it and continues."""
        if not self._tightened:
            try:
                with out_of_memory_recognised():
                    return self._decoder.step([text.writer(self._decoder) for text in texts], in_pieces)
            except torch.OutOfMemoryError:
                pass  # its traceback keeps the pass alive until this block is left
            self._load_tightened(self.plan)
        with out_of_memory_explained(self.plan):
            return self._decoder.step([text.writer(self._decoder) for text in texts], in_pieces)

    @property
    def _limits(self) -> CallLimits:
        spec, vocab_size = self._preparation.target.spec, self._models.target.model.vocab_size
        return CallLimits(spec, self._defaults, vocab_size, self.context_length, self._has_text)

    def _check_open(self) -> None:
        self._turns.check_process()
        if not self._close.alive:
            raise UsageError("this runtime is closed: load the model again")


def _close_in(process: int, resources: ExitStack) -> None:
    """Threads belong to the process that started them, so a fork has nothing to close."""
    if os.getpid() == process:
        resources.close()


def _check_draft(preparation: Preparation) -> None:
    """Reject a draft with other tokens than the target; needed where `prepare` could not read both vocabularies."""
    assert preparation.draft is not None
    target, draft = preparation.target.spec, preparation.draft.spec
    sources = [model_source(spec.directory) for spec in (target, draft)]
    if all(source.has_tokenizer() for source in sources) and not all(source.has_vocabulary() for source in sources):
        ours, theirs = (source.tokenizer() for source in sources)
        check_same_tokens(ours, theirs, target.vocab_size, draft.vocab_size)
