import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequoia_tree import DEFAULT_ACCEPTANCE, Tree, chain, chains, k_ary, optimal_tree
from sequoia_tree.__main__ import main
from sequoia_tree.shapes.picture import summary, svg, text

SMALL = Tree([-1, 0, 0, 0, 1, 1, 3, 6])
PICTURE = """\
●┬1 60%┬1 36%
 │     └2 18%
 ├2 30%
 └3 .5%─1 .3%─1 .2%"""


def circles(document):
    return ElementTree.fromstring(document).findall(".//{http://www.w3.org/2000/svg}circle")


def test_a_small_tree_as_text():
    assert text(SMALL, [0.6, 0.3, 0.005]) == PICTURE
    assert text(Tree([-1]), [0.5]) == "●"
    assert text(chain(3), [1.0]) == "●─1 100%─1 100%"
    assert text(chain(3), [0.01]) == "●─1 1%─1 0%"


def test_a_small_tree_in_words():
    assert summary(SMALL, [0.6, 0.3, 0.005]).splitlines() == [
        "8 nodes · depth 3 · 2.45 tokens per pass expected",
        "nodes at each depth: 1, 3 (2 times), 1",
    ]
    assert summary(Tree([-1]), [0.5]).startswith("1 node · depth 0 · 1.00 tokens")


def test_the_unlikely_is_hidden_first():
    note = "4 of 8 nodes are hidden (after …, or below a loose ┬ or ├), each 18% or less"
    assert text(SMALL, [0.6, 0.3, 0.005], lines=2) == f"●┬1 60%┬1 36%\n ├2 30%\n{note}"
    assert text(SMALL, [0.6, 0.3, 0.005], columns=9).splitlines()[:3] == ["●┬1 60%…", " ├2 30%", " └3 .5%…"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**6), max_size=60), st.integers(1, 12), st.integers(1, 80))
def test_limits_hold_and_every_hidden_node_is_counted(choices, lines, columns):
    tree = Tree([-1, *(choice % node for node, choice in enumerate(choices, 1))])
    rows = text(tree, DEFAULT_ACCEPTANCE, lines, columns).splitlines()
    hidden = int(rows.pop().split()[0]) if "hidden" in rows[-1] else 0
    assert len(rows) <= lines
    assert max(map(len, rows)) <= max(columns, 9)  # one level is always drawn, and 9 columns hold it
    assert sum(row.count("%") for row in rows) + 1 + hidden == tree.size
    assert ("…" in "".join(rows)) <= (hidden > 0)


@pytest.mark.parametrize(
    "tree",
    [Tree([-1]), chain(2), SMALL, optimal_tree(DEFAULT_ACCEPTANCE, 64), chain(4096), chains(64, 63), k_ary(8, 4096)],
    ids=lambda tree: f"{tree.size}-{tree.depth}",
)
def test_svg_is_well_formed_and_holds_every_node_inside_its_frame(tree):
    document = svg(tree, DEFAULT_ACCEPTANCE)
    root = ElementTree.fromstring(document)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    nodes = circles(document)
    assert len(nodes) == tree.size
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == tree.size - 1
    places = [(float(node.attrib["cx"]), float(node.attrib["cy"]), float(node.attrib["r"])) for node in nodes]
    for x, y, radius in places:
        assert radius <= x <= width - radius and radius <= y <= height - radius
    assert width <= 1600 and height <= 960


def test_svg_draws_the_likelier_larger_and_darker_and_siblings_in_order():
    root, first, second = circles(svg(Tree([-1, 0, 0]), [0.6, 0.3]))
    assert float(root.attrib["r"]) > float(first.attrib["r"]) > float(second.attrib["r"])
    assert root.attrib["fill"] < first.attrib["fill"] < second.attrib["fill"]  # #rrggbb
    assert float(first.attrib["cx"]) < float(root.attrib["cx"]) < float(second.attrib["cx"])
    assert float(first.attrib["cy"]) == float(second.attrib["cy"]) > float(root.attrib["cy"])


def test_show_without_arguments_fits_a_screen(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "64 nodes · depth 16 · 5.92 tokens per pass expected"
    assert len(lines) <= 40 and lines[4].startswith("●┬1 77%┬1 60%")
    assert main(["show", "--size", "768"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 40


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--shape chain --size 5", chain(5)),
        ("--shape chain --size 5 --depth 2", chain(3)),
        ("--shape chains --size 13 --children 3", chains(3, 4)),
        ("--shape chains --size 13 --children 3 --depth 2", chains(3, 2)),
        ("--shape chains --size 5 --acceptance 0.5,0.5 --depth 1", chains(2, 1)),
        ("--shape k-ary --size 9", k_ary(2, 9)),
        ("--shape k-ary --children 3 --depth 1", k_ary(3, 4)),
        ("--acceptance 0.1,0.5,0.4 --size 4 --depth 2 --children 2", optimal_tree([0.1, 0.5], 4, 2)),
        ("--shape sequoia --size 20", optimal_tree(DEFAULT_ACCEPTANCE, 20)),
    ],
)
def test_shapes_and_files(tmp_path, capsys, arguments, expected):
    saved, picture = tmp_path / "tree.json", tmp_path / "tree.svg"
    assert main(["show", *arguments.split(), "--save", str(saved), "--svg", str(picture)]) == 0
    assert Tree.load(saved) == expected
    assert len(circles(picture.read_text(encoding="utf-8"))) == expected.size
    capsys.readouterr()
    assert main(["show", str(saved), "--lines", "0"]) == 0
    assert "hidden" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[0.5, 0.25]", '{"positional": [0.5, 0.25], "pair": "any"}'])
def test_acceptance_from_a_file(tmp_path, capsys, content):
    path = tmp_path / "acceptance.json"
    path.write_text(content)
    assert main(["show", "--size", "3", "--acceptance", str(path)]) == 0
    assert "1.75 tokens per pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "arguments are required: COMMAND"),
        ("show --size many", "argument --size: must be a whole number from 0 to 1,000,000, got 'many'"),
        ("show --size 0", "size counts the root and must be at least 1, got 0"),
        ("show --lines -1", "argument --lines: must be a whole number"),
        ("show --size 9999999999", "argument --size: must be a whole number from 0 to 1,000,000"),
        ("show --shape ring", "argument --shape: invalid choice: 'ring'"),
        ("show --acceptance 0.9,0.2", "sums to at most 1, got 1.1"),
        ("show --acceptance nan", "finite"),
        ("show --acceptance 0.9,x", "neither numbers such as 0.8,0.1,0.05 nor a file: '0.9,x'"),
        ("show --acceptance DIR", "Is a directory"),
        ("show --acceptance DIR/text", "text holds no acceptance: it is not JSON"),
        ("show --acceptance DIR/flags", "flags holds no acceptance: it must be a list of numbers"),
        ("show --acceptance DIR/huge", "acceptance must be a list of numbers (int too large"),
        ("show --acceptance DIR/tree", "tree holds no acceptance: it must be a list of numbers"),
        ("show DIR/missing.json", "missing.json: No such file"),
        ("show DIR/text", "text holds no tree: it is not JSON"),
        ("show DIR/tree --size 5", "--size is for a tree to be made, but"),
        ("show --shape chain --children 2", "--children is not for a chain"),
        ("show --shape chains --children 70", "at least 1 chain of at least 1 node, got 70 of 0"),
        ("show --svg DIR/no/tree.svg", "tree.svg: No such file"),
        ("show --save DIR", "Is a directory"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    files = {"text": "not JSON", "flags": "[true]", "huge": "[1" + "0" * 400 + "]", "tree": '{"parents": [-1]}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(arguments.replace("DIR", str(tmp_path)).split())
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert message in output.err and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert output.out == ""


def test_a_reader_that_has_enough_ends_it_quietly():
    script = f"{sys.executable} -m sequoia_tree show --size 20000 --lines 0 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("20,000 nodes")


def test_the_command_needs_no_torch_and_its_help_tells_every_option(capsys):
    code = "import sys, sequoia_tree.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(SystemExit) as caught:
        main(["show", "--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    for option in ("--acceptance", "--size", "--depth", "--children", "--shape", "--svg", "--save", "--lines"):
        assert option in printed
