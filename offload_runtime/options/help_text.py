"""How `--help` looks: as wide as the terminal, with descriptions and examples in the lines they were written in."""

import argparse
import textwrap


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's own, but that lines too long for the terminal go on below, indented by four more."""

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
