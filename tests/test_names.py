"""One name means one thing: no two public classes of the packages are called the same."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("loaders", "scheduler", "sequoia_tree", "offload_runtime")


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert len(places) > 300, "classes are found"
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
