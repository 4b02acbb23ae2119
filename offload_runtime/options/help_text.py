"""The layout of `--help`: as wide as the terminal; descriptions and examples keep their lines."""

import argparse
import textwrap


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Like its base class, but wraps lines that are too long for the terminal, indented by four more."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in text.splitlines():
            begin = indent + line[: len(line) - len(line.lstrip())]
            filled = textwrap.fill(
                line.lstrip(),
                width,
                initial_indent=begin,
                subsequent_indent=f"{begin}    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines.append(filled)
        return "\n".join(lines)
