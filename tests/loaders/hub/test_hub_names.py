"""What is taken for a name on the hub, what for a directory, and what a snapshot's directory is called."""

import subprocess
import sys
from pathlib import Path

import pytest

from loaders.errors import ModelFilesError
from loaders.hub.names import HubName, directory_name, hub_name, model_path, snapshot_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("meta-llama/Llama-3.3-70B_x", HubName("meta-llama/Llama-3.3-70B_x")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/4", HubName("org/name", "refs/pr/4")),
        ("org/name@" + "a" * 40, HubName("org/name", "a" * 40)),
        ("org/name:Q4_K_M", HubName("org/name", None, "Q4_K_M")),
        ("org/name@v1:q8_0", HubName("org/name", "v1", "q8_0")),
        ("org/name:Name 7B (1)-Q8_0.gguf", HubName("org/name", None, "Name 7B (1)-Q8_0.gguf")),
        ("org/name@refs/pr/4:Q8_0/Name-Q8_0.gguf", HubName("org/name", "refs/pr/4", "Q8_0/Name-Q8_0.gguf")),
        *((f"org/name:{text}", None) for text in ("", "../x.gguf", "/x.gguf", "a\\b", "a:b", "a\nb", "\x1b[2J")),
        *((text, None) for text in ("org/name/../x.gguf", "org/name//etc/x.gguf/y", "name:Q4_K_M", "org/name/x.bin")),
        *((text, None) for text in ("name", "name@main", "a/b/c", "/org/name", "org/na me", "org/name@", "", ".")),
        *((text, None) for text in ("./org/name", "org/name/", "../org/name", "~/name", "org/..", "org/name@../../x")),
    ],
)
def test_what_is_a_name(text: str, name: HubName | None) -> None:
    assert hub_name(model_path(text)) == name
    if name:
        assert str(name) == text


@pytest.mark.parametrize("site", ["hf.co/", "huggingface.co/", "https://huggingface.co/", "http://hf.co/"])
@pytest.mark.parametrize("name", ["org/name", "org/name:Q4_K_M", "org/name@v1", "org/name/Name-Q8_0.gguf"])
def test_the_address_of_the_site_may_come_first(site: str, name: str) -> None:
    assert hub_name(model_path(site + name)) == hub_name(model_path(name)) is not None


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("org/name/tree/main", "org/name"),
        ("org/name/tree/main/", "org/name"),
        ("org/name/tree/v1.0", "org/name@v1.0"),
        ("org/name/tree/refs%2Fpr%2F4", "org/name@refs/pr/4"),
        ("org/name/commit/" + "a" * 40, "org/name@" + "a" * 40),
        ("org/name/commits/main", "org/name"),
        ("org/name?library=transformers", "org/name"),
        ("org/name#usage", "org/name"),
        ("org/name/", "org/name"),
        ("org/name.git", "org/name"),
        ("org/name/discussions/3", "org/name"),
        ("org/name/blob/main/config.json", "org/name"),
        ("org/name/resolve/main/model.safetensors?download=true", "org/name"),
        ("org/name/blob/main/x-Q4_K_M.gguf", "org/name:x-Q4_K_M.gguf"),
        ("org/name/resolve/main/x-Q4_K_M.gguf?download=true", "org/name:x-Q4_K_M.gguf"),
        ("org/name/resolve/v2/Q8_0/x%20y-Q8_0.gguf", "org/name@v2:Q8_0/x y-Q8_0.gguf"),
        ("org/name/raw/main/x.gguf", "org/name:x.gguf"),
    ],
)
@pytest.mark.parametrize("site", ["https://huggingface.co/", "hf.co/", "https://www.huggingface.co/", "hf://"])
def test_an_address_as_a_browser_shows_it(address: str, name: str, site: str) -> None:
    found = hub_name(model_path(site + address))
    assert found is not None and str(found) == name


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://huggingface.co/datasets/org/name", "this page is no model's"),
        ("hf.co/spaces/org/name", "this page is no model's"),
        ("https://example.com/org/name/x.gguf", "from the Hugging Face hub alone"),
        ("s3://bucket/name", "from the Hugging Face hub alone"),
    ],
)
def test_other_addresses_are_told_what_they_are(address: str, message: str) -> None:
    with pytest.raises(ModelFilesError, match=message):
        model_path(address)


def test_a_long_question_in_an_address_is_no_part_of_the_name() -> None:
    assert hub_name(model_path(f"https://huggingface.co/org/name?{'x' * 999}")) == HubName("org/name")
    assert hub_name(model_path("https://huggingface.co/org/name/unknown/page")) is None


def test_an_address_of_a_file_here(tmp_path: Path) -> None:
    assert model_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


def test_paths_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_path("~/m") == model_path(Path("~/m")) == tmp_path / "m"
    assert model_path("~no-such-user/m").is_absolute()


def test_a_folder_of_the_cache_is_a_name_where_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name(model_path("models--org--na--me")) == HubName("org/na--me")
    (tmp_path / "models--org--name").mkdir()
    assert hub_name(model_path("models--org--name")) is None


@pytest.mark.parametrize("file", ["Name-Q8_0.gguf", "Q8_0/Name-Q8_0-00001-of-00002.gguf"])
def test_a_file_of_a_repository_may_be_written_as_a_path(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = hub_name(model_path(f"org/name/{file}"))
    assert name == HubName("org/name", None, file) and str(name) == f"org/name:{file}"
    assert hub_name(model_path(f"./org/name/{file}")) is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_name(Path(f"org/name/{file}")) is None, "a slip in the name of a file here is none of the hub's business"


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


def test_a_gguf_file_is_called_by_its_own_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--tiny--llama--x" / "snapshots" / ("0" * 40)
    (snapshot / "Q8_0").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"GGUF")
    for name in ("x-7B-Q8_0.gguf", "Q8_0/x-7B-Q8_0-00001-of-00002.gguf"):
        (snapshot / name).symlink_to(tmp_path / "blob")
        assert directory_name(snapshot / name) == "x-7B-Q8_0"
        assert snapshot_of(snapshot / name) == snapshot
    assert snapshot_of(tmp_path / "x.gguf") is None


def test_the_hubs_library_is_imported_for_names_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from offload_runtime.chat import main; code = main(['--plan']); "
        "print('huggingface_hub' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "False\n", done.stderr
