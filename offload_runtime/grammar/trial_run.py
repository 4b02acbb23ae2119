"""A program that compiles a grammar from its standard input and may hang or crash: a schema with two large values of
`multipleOf` fills memory for minutes. Prints what is wrong in one line, or nothing.
"""

import resource
import sys

MEMORY_BYTES, SECONDS = 1 << 30, 3  # of address space; of processor time, where usual schemas take milliseconds


class Bytes:
    """The simplest tokenizer: a token for each byte, and one that ends a text."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        """The bytes of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Compile and compute the first mask, within limits that end the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from llguidance import LLTokenizer, TokenizerWrapper

    from offload_runtime.grammar.compiled import compiled

    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))
    sys.stdout.write(compiled(tokenizer, sys.stdin.read())[1])


if __name__ == "__main__":
    main()
