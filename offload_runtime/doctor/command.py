"""The doctor's command line: runs the probes one after another and prints what each found."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loaders.sizes import format_size
from offload_runtime.doctor.redaction import redacted
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import device
from offload_runtime.start import PROJECT, command_name

Findings = dict[str, Any]


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name("sequoia-doctor", "offload_runtime.doctor"),
        description="Say what this machine is, how fast it is, and what models it is predicted to run. Takes half a "
        "minute at most, needs no model and no GPU, and names no user, host, path or serial number.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", metavar="DEVICE", type=device, default="auto", help="auto, cpu, cuda or cuda:1")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from offload_runtime.doctor.probes import probes

    report: Findings = {}
    if not arguments.json:
        print(f"{PROJECT}: what this machine is and can do", flush=True)
    for name, probe in probes(arguments.device):
        report[name] = found = redacted(_found(probe))
        if not arguments.json:
            print("\n".join(["", name, *_lines(found)]), flush=True)
    if arguments.json:
        print(json.dumps(report, indent=1))
    return 0


def _found(probe: Callable[[], Any]) -> Any:
    """A probe's result, or its error: one failing probe does not stop the others."""
    try:
        return probe()
    except Exception as error:
        first, *_ = str(error).splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {first}"}


def _lines(found: Any) -> Iterator[str]:
    """Two columns; a list of records gives one line each."""
    if isinstance(found, list):
        for record in found:
            yield "  " + ", ".join(_shown(key, value) for key, value in record.items() if value not in ([], None))
        return
    width = max(map(len, found)) + 2
    for key, value in found.items():
        yield f"  {_words(key):<{width}}{_quantity(key, value)}"


def _shown(key: str, value: Any) -> str:
    """A value, with its key in words unless it is a text."""
    if key.endswith("_tokens_per_second"):
        return f"{_words(key).removesuffix(' tokens')} {value:.3g} tokens/s"
    return value if isinstance(value, str) else f"{_quantity(key, value)} {_words(key)}"


_UNITS = ("_bytes_per_second", "_per_second", "_bytes", "_seconds")


def _words(key: str) -> str:
    """A key such as `link_bandwidth_bytes_per_second` in words."""
    unit = next((unit for unit in _UNITS if key.endswith(unit)), "")
    return key.removesuffix(unit).replace("_", " ")


def _quantity(key: str, value: Any) -> str:
    """A value with its unit, to three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)).replace("_", " ")
    if not isinstance(value, (int, float)):
        return str(value)
    if key.endswith("_bytes_per_second"):
        return f"{value / 1e9:.3g} GB/s"
    if key.endswith("_bytes"):
        return format_size(int(value))
    if key.endswith("_seconds"):
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g}{'/s' * key.endswith('_per_second')}" if isinstance(value, float) else str(value)
