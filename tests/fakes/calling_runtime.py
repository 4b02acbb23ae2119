"""A runtime for tests of the server that thinks, answers and calls tools as it is told to, in the form of Hermes."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from offload_runtime.generation.generation_request import GenerationRequest
from offload_runtime.generation.reply import Reply, ReplyStats
from offload_runtime.text.detokenize import StopStrings
from offload_runtime.text.prompt import encode_prompt
from offload_runtime.text.reply_text import ReplyText
from offload_runtime.text.tools.tool_definitions import Tools
from tests.fakes.shared_runtime import SharedRuntime, Text

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@dataclass
class CallingRuntime(SharedRuntime):
    """replies: what it writes, one after the other, the last one ever after. prompts: the texts that it was given."""

    replies: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @cached_property
    def tokenizer(self) -> Any:
        from tests.samples.tool_templates import family_tokenizer

        return family_tokenizer("hermes")

    def begin(self, request: GenerationRequest) -> Text:
        arguments = request.arguments
        self.asked.append(request)
        ids = self.encode(request.prompt, arguments.get("template_arguments"), arguments.get("tools"))
        self.prompts.append(self.tokenizer.decode(ids))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        written = [*self.tokenizer.encode(reply, add_special_tokens=False), self.tokenizer.eos_token_id]
        tools, stops = Tools.of(arguments.get("tools")), StopStrings(arguments.get("stop") or ())
        text = ReplyText(self.tokenizer, ids, stops, tools=tools)
        written = written[: arguments.get("max_new_tokens")]
        return Text(request, written, text, arguments["should_stop"], Reply(stats=ReplyStats(prompt_tokens=len(ids))))

    def encode(self, prompt: Any, template_arguments: Any = None, tools: Any = None) -> list[int]:
        return encode_prompt(prompt, lambda: self.tokenizer, template_arguments, Tools.of(tools))
