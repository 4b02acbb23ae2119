"""Damages files of a model in seeded ways: what a careless disk does, and what somebody hostile would do."""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

RAW = "\0raw:"  # a text that is written as JSON spells it after this, without quotes
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 255, 1 << 16, 1 << 31, 1 << 63, 10**30, f"{RAW}1{'0' * 400}",
    f"{RAW}1{'0' * 5000}",
    0.5, -0.0, 1e-38, 1e308, f"{RAW}1e999", float("nan"), float("inf"), "", "x", "0", "null", "a" * 100_000,
    "\x1b[31m\u202e\x07",
    f'{RAW}"\\ud800"', "../../etc/passwd", "\n\r\0", [], [[]], [0] * 5000, ["x", 1, None], {}, {"a": 1}, {"": {}}, [{}],
    f"{RAW}{'[' * 5000}{']' * 5000}", f"{RAW}{'[' * 200_000}", "int4", "bfloat16", "float4", "(a+)+$", "{{", "é" * 300,
)  # fmt: skip
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ ('x' * 100000) | center(999999999) }}",
    "{% set ns = namespace(t='x') %}{% for i in range(64) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "{{ messages | join('x' * 99999999) }}",
    "{{ 2 ** (10 ** 9) }}",
    "{{ undefined.attribute }}",
    "{{ messages | nofilter }}",
    "{{ raise_exception('\x1b[31mno') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% if %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages[5].content }}",
    "{{ 1 / 0 }}",
    "",
)


def _spell(value: Any) -> str:
    """JSON, with the texts that begin with RAW as they are."""
    if isinstance(value, str) and value.startswith(RAW):
        return value[len(RAW) :]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_spell(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spell, value)) + "]"
    return json.dumps(value)


def _places(value: Any, most: int = 4000) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a JSON tree, the outer ones first."""
    found, queue = [], [value]
    while queue and len(found) < most:
        one = queue.pop(0)
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in list(keys)[:200]:
            found.append((one, key))
            queue.append(one[key])
    return found


def damage_json(content: bytes, chance: random.Random) -> bytes:
    """One or two values replaced, moved, renamed or left out."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2))):
        places = _places(tree)
        if not places:
            break
        embeddings_and_head = [place for place in places if place[0] is tree]
        holder, key = chance.choice(embeddings_and_head if chance.random() < 0.5 else places)
        kind = chance.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("", "x", "\x1b[2J", "a" * 10_000, str(key) + "s"))] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            other, place = chance.choice(places)
            with suppress(KeyError, IndexError):
                holder[key] = copy.deepcopy(other[place])
        elif kind == 4 and type(holder[key]) in (int, float):
            holder[key] = holder[key] * chance.choice((-1, 0, 2, 0.5, 1000, 1 << 40))
        else:
            holder[key] = chance.choice(VALUES)
    try:
        return _spell(tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return content[:-1]


def damage_bytes(content: bytes, chance: random.Random, most: int | None = None) -> bytes:
    """Bits changed, bytes at an extreme, a piece cut out, doubled or zeroed; within the first `most`."""
    changed, end = bytearray(content), min(len(content), most or len(content))
    at, length = chance.randrange(max(end, 1)), chance.choice((1, 2, 4, 8, 64, 4096))
    kind = chance.randrange(6)
    if kind == 0 and end:
        changed[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and end:
        changed[at : at + length] = bytes([chance.choice((0, 0x7F, 0x80, 0xFF))]) * len(changed[at : at + length])
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = changed[at : at + length]
    else:
        changed[at:at] = chance.randbytes(length)
    return bytes(changed)


def damage_file(file: Path, chance: random.Random) -> str:
    """Another kind of thing in a file's place; says which."""
    kind = chance.choice(("fifo", "directory", "empty", "sparse", "dangling", "loop", "device", "absent", "zeros"))
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind in ("empty", "zeros"):
        file.write_bytes(bytes(999 if kind == "zeros" else 0))
    elif kind == "sparse":
        with file.open("wb") as stream:
            stream.truncate(1 << 40)
    elif kind in ("dangling", "loop", "device"):
        file.symlink_to({"dangling": "nowhere", "loop": file.name, "device": "/dev/zero"}[kind])
    return kind


def damage_safetensors(content: bytes, chance: random.Random) -> bytes:
    """The header's JSON, or its bytes, or the length before it; the weights are left as they are."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = chance.randrange(4)
    if kind < 2:
        header = damage_json(header, chance)
    elif kind == 2:
        header = damage_bytes(header, chance)
    else:
        return (
            damage_bytes(content, chance, most=8)
            if chance.random() < 0.5
            else content[: chance.randrange(len(content))]
        )
    return len(header).to_bytes(8, "little") + header + data


def damaged_copies(source: Path, target: Path, seeds: range, names: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Fill `target` with `source`, one file of it damaged, anew for each seed; says what was done."""
    files = sorted(file.name for file in source.iterdir() if names(file.name))
    for seed in seeds:
        chance = random.Random(seed)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        file = target / chance.choice(files)
        content = file.read_bytes()
        if chance.random() < 0.1:
            what = damage_file(file, chance)
        elif file.suffix == ".jinja":
            what = chance.choice(TEMPLATES)
            file.write_text(what)
        elif file.suffix == ".safetensors":
            what = "header"
            file.write_bytes(damage_safetensors(content, chance))
        elif file.suffix == ".json" and chance.random() < 0.8:
            what = "values"
            file.write_bytes(damage_json(content, chance))
        else:
            what = "bytes"
            file.write_bytes(damage_bytes(content, chance, 20_000 if file.suffix == ".gguf" else None))
        yield seed, f"{file.name}: {what[:60]}"
