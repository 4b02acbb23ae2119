"""A GGUF file written again with other values or tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.samples.gguf_samples import gguf

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def rewritten(source: Path, directory: Path, change: Change) -> Path:
    """`source` after `change` of its values and tensors, which may return the name of another architecture."""
    reader = gguf.GGUFReader(source)
    values = {
        name: (field.contents(), field.types) for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    architecture, _ = values.pop("general.architecture")
    tensors = {t.name: (t.data, t.tensor_type) for t in reader.tensors}
    other = change(values, tensors)
    writer = gguf.GGUFWriter(directory / "changed.gguf", other if isinstance(other, str) else architecture)
    for name, (value, types) in values.items():
        writer.add_key_value(name, value, *types)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return directory / "changed.gguf"
