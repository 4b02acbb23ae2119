import json

import pytest

from sequoia_tree import DEFAULT_ACCEPTANCE, Tree, optimal_tree


def test_a_saved_tree_comes_back(tmp_path):
    for tree in (Tree([-1]), optimal_tree(DEFAULT_ACCEPTANCE, 768)):
        tree.save(tmp_path / "tree.json")
        assert Tree.load(str(tmp_path / "tree.json")) == tree
    assert json.loads((tmp_path / "tree.json").read_text()) == {"parents": tree.parents}


def test_other_keys_are_left_alone(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text('\n{"note": [1.5, null], "parents": [-1, 0]}\n')
    assert Tree.load(path).parents == [-1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"parents": [-1, 0', "not JSON"),
        (b"\xff\xfe\x00\x80", "not JSON"),
        ("[" * 200_000, "too deeply"),
        ('{"parents": ' + "[" * 200_000 + "]" * 200_000 + "}", "too deeply"),
        ("[-1, 0]", 'the key "parents"'),
        ("null", 'the key "parents"'),
        ('{"parent": [-1, 0]}', 'the key "parents"'),
        ('{"parents": {"0": -1}}', "a list of integers"),
        ('{"parents": "-1"}', "a list of integers, got '-1'"),
        ('{"parents": null}', "a list of integers, got None"),
        ('{"parents": [-1, false]}', r"parents\[1\] must be an integer, got False"),
        ('{"parents": [-1, 0.0]}', r"parents\[1\] must be an integer, got 0.0"),
        ('{"parents": [-1, NaN]}', r"parents\[1\] must be an integer, got nan"),
        ('{"parents": [-1, "0"]}', r"parents\[1\] must be an integer, got '0'"),
        ('{"parents": [-1, null]}', r"parents\[1\] must be an integer, got None"),
        ('{"parents": [-1, [' + "7, " * 500 + "7]]}", r"got \[7, 7, .{30,40}…$"),
        ('{"parents": []}', "at least a root"),
        ('{"parents": [0]}', r"parents\[0\] is the root's"),
        ('{"parents": [-1, -1]}', r"parents\[1\] must be an earlier node"),
        ('{"parents": [-1, 0, 2]}', r"parents\[2\] must be an earlier node, 0 to 1, got 2"),
        ('{"parents": [-1, 0, 1' + "0" * 30 + "]}", r"parents\[2\].* got 10{30}$"),
        ('{"parents": [-1, 1' + "0" * 6000 + "]}", r"not JSON|parents\[1\]"),  # Python limits the digits it converts
        ('{"parents": [-1' + ", 0" * 1_000_000 + "]}", "1,000,001 nodes; at most 1,000,000"),
    ],
    ids=range(24),
)
def test_damaged_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "damaged.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        Tree.load(path)
    assert str(caught.value).startswith(f"{path} holds no tree: ")


def test_a_million_nodes_are_read(tmp_path):
    path = tmp_path / "large.json"
    path.write_text('{"parents": [-1' + ", 0" * 999_999 + "]}")
    assert Tree.load(path).size == 1_000_000


def test_a_checkpoint_named_by_mistake_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole in the file system, which reading would turn into a terabyte of zeros
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes, more than any tree"):
        Tree.load(path)


def test_what_cannot_be_opened_is_an_operating_system_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tree.load(tmp_path / "missing.json")
    with pytest.raises(OSError):
        Tree.load(tmp_path)
