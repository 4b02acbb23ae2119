"""The command line: every option reaches its place, bad values exit with 2, help and plan come without torch."""

import argparse
import inspect
import json
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from loaders.checkpoint.rope_scaling import RopeScaling
from offload_runtime.errors import UsageError
from offload_runtime.generation.defaults import SAMPLING_NAMES, override
from offload_runtime.generation.runtime import OffloadRuntime
from offload_runtime.options.arguments import chat_parser, model_options, parse_chat_arguments
from offload_runtime.options.fields import add_options, option, options_of, takes_fields_of, values_of
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET, RunOptions, resolved
from offload_runtime.options.sampling_options import SAMPLING, SamplingOptions, sampling_options
from sequoia_tree.shaping.settings import Sampling

VALUES: dict[str, Any] = {
    **{"context_length": 9, "rope_scaling": "yarn:4", "tree": "chain", "verification": "match", "tree_size": 3},
    **{"quantize": "int4", "quantized_directory": "q", "chat_template": "t.jinja", "io": "direct", "tree_depth": 2},
    **{"offline": True, "template_arguments": {"a": 1}, "progress": print, "parallel": 3, "kv": "host"},
    **{"prompt_cache": "p", "prompt_cache_size": "2GiB", "kv_bits": 8, "calibration": "c"},
}
ROOT = Path(__file__).resolve().parents[3]


def test_nothing_given_is_the_bundled_pair() -> None:
    options = model_options(parse_chat_arguments([]))
    assert (options.model, options.draft) == (DEMO_TARGET, DEMO_DRAFT)


@pytest.mark.parametrize(
    ("arguments", "draft"),
    [(["-m", "x"], "auto"), (["-m", "x", "-d", "y"], Path("y")), (["-d", "none"], None), (["-d", "y"], Path("y"))],
)
def test_the_draft(arguments: list[str], draft: Path | str | None) -> None:
    assert model_options(parse_chat_arguments(arguments)).draft == draft


def test_model_options_are_read() -> None:
    line = "-m x --device cpu --device-memory 1.5GiB --host-memory 2GB --dtype float32 --tree chain"
    options = model_options(
        parse_chat_arguments([*line.split(), "--tree-size=8", "--tree-depth=auto", "--context-length=99"])
    )
    assert (options.model, options.device, options.dtype, options.tree) == (Path("x"), "cpu", "float32", "chain")
    assert (options.device_memory, options.host_memory) == (3 * 2**29, 2 * 10**9)
    assert (options.tree_size, options.tree_depth, options.context_length) == (8, None, 99)
    options = model_options(parse_chat_arguments(["-m", "x", "--quantize", "int4", "--quantized-directory", "y"]))
    assert (options.quantize, options.quantized_directory) == ("int4", Path("y"))


def test_options_of_the_chat_template_are_read() -> None:
    line = "-m x --chat-template t.jinja --template-arg enable_thinking=false --template-arg reasoning_effort=high"
    parsed = parse_chat_arguments([*line.split(), "--template-arg", 'tags=["a", "b=c"]', "--thinking", "hide"])
    options = model_options(parsed)
    assert options.chat_template == Path("t.jinja") and parsed.thinking == "hide"
    expected = {"enable_thinking": False, "reasoning_effort": "high", "tags": ["a", "b=c"]}
    assert options.template_arguments == expected
    assert model_options(parse_chat_arguments([])).template_arguments == {}


def test_sampling_options_are_read() -> None:
    assert sampling_options(parse_chat_arguments([])) == SamplingOptions()
    line = "--temperature 0 --top-p .9 --top-k 40 --min-p 0 --repetition-penalty 1.1 --seed 7 --max-new-tokens 5"
    expected = {"temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0, "repetition_penalty": 1.1}
    options = sampling_options(parse_chat_arguments(line.split()))
    given = {name: value for name, value in options.as_arguments().items() if value is not None}
    assert given == {**expected, "seed": 7, "max_new_tokens": 5}


@pytest.mark.parametrize(
    "line",
    [
        "--template-arg enable_thinking",
        "--template-arg enable_thinking=False",
        "--template-arg enable-thinking=false",
        "--template-arg x={",
        "--raw --template-arg x=1",
        "--raw --chat-template x",
        "--thinking maybe",
        "--temperature -1",
        "--temperature nan",
        "--temperature inf",
        "--temperature warm",
        "--top-p 0",
        "--top-p 1.1",
        "--top-k 1.5",
        "--min-p 2",
        "--repetition-penalty 0",
        "--seed -1",
        "--seed 9223372036854775808",
        "--max-new-tokens 0",
        "--device-memory lots",
        "--device tpu",
        "--dtype int3",
        "--tree bonsai",
        "--tree-size 0",
        "--tree-depth deep",
        "--parallel 0",
        "--parallel 257",
        "--parallel many",
        "--kv disk",
        "--context-length 0",
        "--quantize int3",
        "--prompt a --file b",
        "--prompt a\udcff",
        "--system a\udcff",
        "--raw --system x",
        "--temp 1",
        "stray",
    ],
)
def test_a_bad_value_exits_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_chat_arguments(line.split())
    output = capsys.readouterr()
    assert stopped.value.code == 2 and output.out == ""
    assert "error: " in output.err and "Traceback" not in output.err


def test_bounds_are_written_in_full() -> None:
    with pytest.raises(UsageError, match="at least 0 and at most 9223372036854775807"):
        SamplingOptions().with_value("seed", "-1")
    with pytest.raises(UsageError, match=r"above 0 and at most 1$"):
        SamplingOptions().with_value("top_p", "0")


def test_values_change_and_reset() -> None:
    options = SamplingOptions().with_value("temperature", "0.5").with_value("seed", "3")
    assert options == SamplingOptions(temperature=0.5, seed=3)
    assert options.with_value("temperature", "default") == SamplingOptions(seed=3)


@pytest.mark.parametrize(("name", "text"), [("temperature", "-1"), ("warmth", "1"), ("top_k", "")])
def test_a_bad_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingOptions().with_value(name, text)


def test_values_survive_a_file() -> None:
    options = SamplingOptions(temperature=0.7, top_k=3)
    assert SamplingOptions.from_mapping(options.as_arguments()) == options
    for damaged in ({"temperature": "hot"}, {"top_p": float("nan")}, {"other": 1}, {"seed": [1]}):
        with pytest.raises(UsageError):
            SamplingOptions.from_mapping(damaged)


@dataclass(frozen=True)
class WithColour(RunOptions):
    colour: str = option("colour of the lights", "COLOUR", str.upper, default="red")


class Lights:
    @classmethod
    @takes_fields_of(WithColour)
    def of(cls, given: WithColour) -> WithColour:
        """Switch them on."""
        return given


def test_a_field_is_a_flag_an_argument_and_documented() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, WithColour, "model")
    assert "--colour COLOUR" in parser.format_help() and "colour of the lights (default: red)" in parser.format_help()
    arguments = parser.parse_args(["-m", "x", "--colour", "blue", "--tree-size", "4", "--tree-depth=2"])
    given = WithColour(**values_of(WithColour, arguments))
    assert given == Lights.of("x", colour="BLUE", tree_size=4, tree_depth=2)
    assert inspect.signature(Lights.of).parameters["colour"].default == "red"
    assert "Switch them on." in (Lights.of.__doc__ or "") and "colour: colour of the lights" in (
        Lights.of.__doc__ or ""
    )


def test_the_facade_takes_the_fields_that_the_command_line_has() -> None:
    parameters = inspect.signature(OffloadRuntime.from_pretrained).parameters
    assert list(parameters) == [field.name for field in fields(RunOptions)]
    assert all(parameters[field.name].annotation == field.type for field in fields(RunOptions))
    flags = vars(parse_chat_arguments([]))
    assert set(options_of(RunOptions)) - set(flags) == {"io", "progress"}
    for name in set(options_of(RunOptions)) & set(flags) - {"model"}:
        assert flags[name] in (parameters[name].default, None), name


@pytest.mark.parametrize(
    ("name", "meant"),
    [("devce", "did you mean 'device'"), ("gpu", "there are model, draft"), ("tree_sizes", "'tree_size'")],
)
def test_an_unknown_argument_is_a_type_error_with_the_nearest_name(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"from_pretrained.. has no argument '{name}'; .*{meant}"):
        OffloadRuntime.from_pretrained("x", **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        OffloadRuntime.from_pretrained(draft="x")  # type: ignore[call-arg]


def test_what_is_said_is_kept_whichever_way_it_is_said(tmp_path: Path) -> None:
    said = RunOptions(str(tmp_path), None, "cpu", "1GiB", 5, "float32", **VALUES)
    kept = resolved(said)
    assert (kept.model, kept.draft, kept.quantized_directory) == (tmp_path, None, Path("q"))
    assert (kept.prompt_cache, kept.prompt_cache_size) == (Path("p"), 2 << 30)
    assert kept.rope_scaling == RopeScaling.parse("yarn:4") and kept.template_arguments == {"a": 1}
    packed = resolved(replace(said, quantize=None, calibration=None, link="packed"))  # the two exclude each other
    assert packed.link == "packed" and packed.packed_as == "lossless" and kept.packed_as == "int4"
    converted = {
        "link",
        "model",
        "draft",
        "adapter",
        "quantized_directory",
        "chat_template",
        "template_arguments",
        "rope_scaling",
        "prompt_cache",
        "prompt_cache_size",
    }
    for name in {field.name for field in fields(RunOptions)} - converted:
        assert getattr(kept, name) == getattr(said, name) != getattr(RunOptions(""), name), name
    line = "--template-arg a=1 --rope-scaling yarn:4 --tree chain --verification match --tree-size 3 --tree-depth 2"
    line += f" -m {tmp_path} -d none --device cpu --device-memory 1GiB --host-memory 5 --dtype float32 --offline"
    line += " --quantize int4 --quantized-directory q --context-length 9 --chat-template t.jinja --parallel 3 --kv host"
    line += " --prompt-cache p --prompt-cache-size 2GiB --kv-bits 8 --calibration c"
    by_flags = model_options(parse_chat_arguments(line.split()))
    assert replace(by_flags, io="direct", device_memory="1GiB") == kept


def test_the_sampling_values_are_arguments_of_a_call() -> None:
    stream = inspect.signature(OffloadRuntime.stream).parameters
    assert list(SAMPLING) == list(SamplingOptions().as_arguments())
    assert set(SAMPLING) <= {*stream, *SAMPLING_NAMES}
    assert inspect.signature(OffloadRuntime.generate).parameters == stream
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        SamplingOptions().with_value("temprature", "1")
    with pytest.raises(UsageError, match="did you mean 'typical_p'"):
        override(Sampling(), tipical_p=1)


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--help", "--tree-size"),
        ("--plan", "Plan for model"),
        ("--plan --quantize int4", "int4, groups of 32 and whole rows"),
        ("--plan --quantize int8", "compressed-tensors int8"),
    ],
)
def test_help_and_plan_do_not_import_torch(option: str, answer: str, tmp_path: Path) -> None:
    write_random_checkpoint(SHAPES["tiny"], tmp_path / "model")
    arguments = ["-m", str(tmp_path / "model"), *option.split()]
    code = (
        "import sys; from offload_runtime.chat import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stopped: code = stopped.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("###", ("###",)),
        (r"\n\n", ("\n\n",)),
        (r"a\\nb", (r"a\nb",)),
        (r"\x", (r"\x",)),
        ("[INST]", ("[INST]",)),
        ('"', ('"',)),
        ('" end"', (" end",)),
        (r'["\n", "User:"]', ("\n", "User:")),
        ("[1]", ("[1]",)),
    ],
)
def test_stop_texts_are_read_as_a_user_writes_them(text: str, stops: tuple[str, ...]) -> None:
    assert SamplingOptions().with_value("stop", text).stop == stops


def test_stops_and_biases_add_up() -> None:
    line = ["--stop", "a", "--stop", r"\n", "--logit-bias", "5=-2,6=1.5", "--logit-bias", "7=-inf"]
    options = sampling_options(parse_chat_arguments(line))
    assert options.stop == ("a", "\n")
    arguments = options.as_arguments()
    assert arguments["logit_bias"] == {5: -2.0, 6: 1.5, 7: float("-inf")}
    assert SamplingOptions.from_mapping(json.loads(json.dumps(arguments))) == options


@pytest.mark.parametrize("text", ["5", "5=x", "a=1", "-1=2", "5=nan", "{}x", '{"a": 1}', "5=1,"])
def test_a_bad_bias_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        SamplingOptions().with_value("logit_bias", text)


@pytest.mark.parametrize(
    "damaged", [{"stop": [1]}, {"stop": [""]}, {"stop": ""}, {"logit_bias": [5]}, {"stop": ["\ud800"]}]
)
def test_damaged_lists_in_a_file_are_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SamplingOptions.from_mapping(damaged)


def test_a_response_format_is_json_or_a_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    for text in (str(file), json.dumps(schema), json.dumps(wanted)):
        options = sampling_options(parse_chat_arguments(["--response-format", text]))
        assert options.as_arguments()["response_format"] == wanted
        assert SamplingOptions.from_mapping(json.loads(json.dumps(options.as_arguments()))) == options
    assert SamplingOptions().with_value("response_format", "json").response_format == {"type": "json_object"}
    file.write_text("[1]")
    for text, said in ((str(file), "not an object"), (f"{file}.none", "No such file"), ("{", "is not JSON")):
        with pytest.raises(UsageError, match=said):
            SamplingOptions().with_value("response_format", text)
    with pytest.raises(UsageError, match="no response format"):  # a file of values names no other files
        SamplingOptions.from_mapping({"response_format": str(file)})


@pytest.mark.parametrize("columns", [80, 60])
def test_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["sequoia-chat"])
    lines = chat_parser().format_help().splitlines()
    assert max(len(line) for line in lines if "{" not in line) <= columns
    assert any(line.startswith("exit codes: 0 ok") for line in lines) and "examples:" in lines
