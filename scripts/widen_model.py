"""Embed a small Llama in a checkpoint of a large one's shape that computes the same function.

    python scripts/widen_model.py --output DIR                     the demonstration target in the shape of Llama-2-70B
    python scripts/widen_model.py --output DIR --idle-layers 1     the same in 11 GB: layers without effect repeat one

A run of the wide model costs what the large model costs and writes what the small one writes, with the small one's
draft accepted as often: a true text at full size, without a download. Tokenizer, chat template and vocabulary are those
of the small model.

Layers without effect are random but for the two matrices that add to the residual stream, which are zero. With
--idle-layers N only N of them are written, and "stored_layers" in config.json says which layer of the files each layer
is; this project's runtime follows it, other programs do not.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from toolkit.options import STORED_DTYPES, script_parser

from offload_runtime.errors import UnsupportedModelError, UsageError
from offload_runtime.options.command_line import run_command
from offload_runtime.options.readers import whole_number
from offload_runtime.options.run_options import DEMO_TARGET

# Whatever needs torch is imported where it is used: `--help` and mistakes are answered before that.
if TYPE_CHECKING:
    import torch
    from widening.placement import Placement, Shape

SIZES = {
    "hidden": "size of the residual stream",
    "ffn": "channels between the two halves of a layer's MLP",
    "layers": "decoder layers",
    "heads": "query heads",
    "kv_heads": "key heads",
    "head_dim": "dimensions of a head",
}
SHAPE = "llama-2-70b"
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class Widened:
    """What was written: the shapes, and how many layers without effect the files hold."""

    placement: "Placement"
    idle_layers: int
    nbytes: int


def widen(
    source: Path,
    output: Path,
    shape: "Shape",
    dtype: "torch.dtype | None" = None,
    idle_layers: int | None = None,
    seed: int = 0,
) -> Widened:
    """Write the checkpoint to `output`; `source` is that of the small Llama, whose dtype is kept if none is given.

    idle_layers: how many distinct layers without effect to write, at most and by default as many as there are.
    Raises UsageError where the small model does not fit into the shape, UnsupportedModelError where it is no plain
    Llama, ModelFilesError for missing files and full disks.
    """
    import torch
    from widening.placement import Placement, Shape
    from widening.weights import WideWeights

    from loaders.checkpoint.random_weights import RandomValues
    from loaders.checkpoint.read_spec import read_config, read_spec
    from loaders.safetensors_files.writer import write_checkpoint

    config, spec = read_config(source), read_spec(source)
    if spec.decode_bytes:
        raise UnsupportedModelError(
            f"{source}: the weights are packed ({spec.stored_dtype}); only plain ones can be used."
        )
    placement = Placement(Shape.of(config), shape)
    dtype = dtype or getattr(torch, spec.dtype)
    kinds, stored = _stored_layers(placement, idle_layers)
    wide_config = _wide_config(config, placement, dtype)
    weights = WideWeights(placement, _small_weights(source), kinds, dtype, RandomValues(dtype, seed))
    entries = _entries(wide_config, len(kinds))
    write_checkpoint(output, entries, dtype, weights.values)
    if stored is not None:
        wide_config["stored_layers"] = stored
    (output / "config.json").write_text(json.dumps(wide_config, indent=2) + "\n")
    for file in source.iterdir():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file, output / file.name)
    return Widened(placement, kinds.count(None), sum(entry.count for entry in entries) * dtype.itemsize)


def _stored_layers(placement: "Placement", idle_layers: int | None) -> tuple[tuple[int | None, ...], list[int] | None]:
    """What each layer of the files holds, None being no effect; and which of them each layer of the model is.

    The latter is None where the files hold every layer in its place.
    """
    count = placement.wide.layers
    idle = [layer for layer in range(count) if layer not in placement.layers]
    if idle_layers is None or idle_layers >= len(idle):
        return tuple(placement.layers.get(layer) for layer in range(count)), None
    active = placement.small.layers
    places = {layer: active + number % idle_layers for number, layer in enumerate(idle)}
    kinds = (*range(active), *[None] * idle_layers)
    return kinds, [placement.layers.get(layer, places.get(layer, 0)) for layer in range(count)]


def _wide_config(config: dict[str, Any], placement: "Placement", dtype: "torch.dtype") -> dict[str, Any]:
    """The config.json: the small one's, with what the shape changes."""
    rope = dict(config["rope_parameters"])
    rope["rope_theta"] = rope["rope_theta"] ** placement.rope_base_power
    return {
        **config,
        **placement.wide.as_config(),
        "rope_parameters": rope,
        "rms_norm_eps": config["rms_norm_eps"] * placement.norm_scale**2,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _small_weights(source: Path) -> "dict[str, torch.Tensor]":
    """Every tensor in float32, a tied head under its own name too."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    return model.state_dict()


def _entries(config: dict[str, Any], layers: int) -> list[Any]:
    """Names and shapes of the tensors to be written."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from loaders.safetensors_files.writer import TensorEntry

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, "num_hidden_layers": layers}))
    return [TensorEntry(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def wide_shape(name: str, **sizes: int | None) -> "Shape":
    """The sizes of a known shape, with those that are given in their place. Raises UsageError for unknown names."""
    from widening.placement import Shape

    from loaders.checkpoint.random_weights import SHAPES

    llamas = [known for known, config in SHAPES.items() if config["model_type"] == "llama"]
    if name not in llamas:
        raise UsageError(f"{name!r} is no shape of a Llama; there are {', '.join(llamas)}")
    shape = Shape.of(SHAPES[name])
    given = {key: value for key, value in sizes.items() if value is not None}
    return replace(shape, **given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    shape = wide_shape(arguments.shape, **{name: getattr(arguments, name) for name in SIZES})
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    if arguments.output.exists() and any(arguments.output.iterdir()):
        raise UsageError(f"--output {arguments.output}: it is not empty, and nothing in it is overwritten")
    wide = widen(arguments.model, arguments.output, shape, dtype, arguments.idle_layers, arguments.seed)
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(wide.placement.wide).items())
    active = len(wide.placement.layers)
    print(
        f"{arguments.output}: {wide.nbytes / 1e9:.2f} GB, {sizes}; {active} layers with effect, "
        f"{shape.layers - active} without, of which {wide.idle_layers} are in the files"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = script_parser("widen_model", __doc__)
    parser.usage = "%(prog)s --output DIR [OPTIONS]"
    add = parser.add_argument
    add("--output", metavar="DIR", type=Path, required=True, help="where to write; must be empty or not exist")
    add("--model", "-m", metavar="DIR", type=Path, default=DEMO_TARGET, help="the small Llama (default: the bundled)")
    add("--shape", metavar="NAME", default=SHAPE, help=f"sizes of a known Llama (default: {SHAPE})")
    for name, meaning in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        add(option, metavar="N", type=whole_number(1), help=f"{meaning}, in place of the shape's")
    add("--dtype", choices=("auto", *STORED_DTYPES), default="auto", help="type to store in (default: the model's own)")
    add("--idle-layers", metavar="N", type=whole_number(1), help="distinct layers without effect (default: all differ)")
    add("--seed", metavar="N", type=whole_number(0), default=0, help="of the random weights (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
