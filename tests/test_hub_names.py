"""What is taken for a name on the hub, what for a directory, and what a snapshot's directory is called."""

import subprocess
import sys
from pathlib import Path

import pytest

from loaders.hub_names import HubName, directory_name, hub_name, model_path

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("meta-llama/Llama-3.3-70B_x", HubName("meta-llama/Llama-3.3-70B_x")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/4", HubName("org/name", "refs/pr/4")),
        ("org/name@" + "a" * 40, HubName("org/name", "a" * 40)),
        *((text, None) for text in ("name", "name@main", "a/b/c", "/org/name", "org/na me", "org/name@", "", ".")),
        *((text, None) for text in ("./org/name", "org/name/", "../org/name", "~/name", "org/..", "org/name@../../x")),
    ],
)
def test_what_is_a_name(text: str, name: HubName | None) -> None:
    assert hub_name(model_path(text)) == name
    if name:
        assert str(name) == text


def test_a_path_that_exists_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name(Path("org/name")) == HubName("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_name(Path("org/name")) is None
    assert hub_name(model_path(Path("no/such"))) is None  # a Path is meant as one


def test_a_snapshot_is_called_by_the_models_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--tiny--llama--x" / "snapshots" / ("0" * 40)
    assert directory_name(snapshot) == "x" and directory_name(tmp_path / "llama") == "llama"
    assert directory_name(snapshot / "deeper") == "deeper"


def test_the_hubs_library_is_imported_for_names_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from offload_runtime.chat import main; code = main(['--plan']); "
        "print('huggingface_hub' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "False\n", done.stderr
