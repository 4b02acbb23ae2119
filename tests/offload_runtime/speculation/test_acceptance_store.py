"""Where acceptance is kept: what comes back, which file counts, and that damage is named or harmless."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.checkpoint.random_weights import SHAPES, write_random_checkpoint
from offload_runtime.errors import ModelFilesError
from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET
from offload_runtime.speculation import acceptance_store as store
from offload_runtime.speculation.acceptance_store import Measurement, PairAcceptance, Setting
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.shaping.settings import Sampling

GREEDY, WARM, HOT = Setting(temperature=0.0), Setting(temperature=0.6), Setting(temperature=1.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a target and a draft."""
    directory = tmp_path_factory.mktemp("models")
    for name, shape in (("target", "tiny"), ("draft", "small")):
        (directory / name).mkdir()
        write_random_checkpoint(SHAPES[shape], directory / name)
    return directory / "target", directory / "draft"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def beside(models):
    """The file beside the draft's weights, gone after the test."""
    yield models[1] / store.ACCEPTANCE_FILE
    (models[1] / store.ACCEPTANCE_FILE).unlink(missing_ok=True)


def table(first):
    """A table in which child 1 has this acceptance."""
    return Acceptance.from_positional([first, (1 - first) / 2], 200)


def pair(**first_by_setting):
    settings = {"greedy": GREEDY, "warm": WARM, "hot": HOT}
    measurements = {settings[name]: Measurement(table(first)) for name, first in first_by_setting.items()}
    return PairAcceptance("big", "small", measurements)


def firsts(known):
    """Setting to acceptance of child 1."""
    return {setting: round(float(one.acceptance.positional()[0]), 4) for setting, one in known.measurements.items()}


def test_what_is_saved_comes_back(models, cache):
    numbers = np.random.default_rng(0)
    counts = numbers.integers(1, 900, (11, 32))
    full = Acceptance(counts, counts * numbers.random((11, 32)), counts / 7, numbers.random(7), 300)
    measured = PairAcceptance("big", "small", {GREEDY: Measurement(full, 0.625, None), WARM: Measurement(full, 0, 1)})
    assert store.load(*models) is None
    assert store.save(measured, *models)
    known = store.load(*models)
    assert (known.target, known.draft) == ("big", "small") and list(known.measurements) == [GREEDY, WARM]
    assert (known.measurements[GREEDY].agreement, known.measurements[WARM].one_minus_tv) == (0.625, 1)
    for name, values in known.measurements[GREEDY].acceptance.as_dict().items():
        assert np.allclose(values, getattr(full, name), atol=1e-6)
    (file,) = (cache / "acceptance").iterdir()  # nothing else is left behind
    assert file == store.cache_file(*models) and file.stat().st_size < 60_000
    assert json.loads(file.read_text())["target_fingerprint"] == store.checkpoint_fingerprint(models[0])


def test_saving_keeps_what_was_measured_at_other_settings(models):
    store.save(pair(greedy=0.5, warm=0.6), *models)
    store.save(pair(warm=0.7, hot=0.8), *models)
    assert firsts(store.load(*models)) == {GREEDY: 0.5, WARM: 0.7, HOT: 0.8}


def test_the_cache_comes_before_the_file_beside_the_weights(models, beside):
    store.write(beside, pair(greedy=0.3, warm=0.4), models[0])
    assert firsts(store.load(*models)) == {GREEDY: 0.3, WARM: 0.4}
    store.save(pair(warm=0.9), *models)
    assert firsts(store.load(*models)) == {GREEDY: 0.3, WARM: 0.9}


def test_a_file_measured_with_another_target_does_not_count(models, beside):
    store.write(beside, pair(warm=0.4), models[1])
    assert store.load(*models) is None
    record = json.loads(beside.read_text())
    beside.write_text(json.dumps({**record, "target_fingerprint": None}))
    assert firsts(store.load(*models)) == {WARM: 0.4}


def test_a_bare_list_serves_every_setting(models, beside):
    beside.write_text(json.dumps({"positional": [0.4, 0.3, 0.2], "temperature": 0.6}))
    known = store.load(*models)
    for setting in (GREEDY, Setting(temperature=0.2, top_p=0.5)):
        found, _ = known.nearest(setting)
        assert np.allclose(found.positional()[:4], [0.4, 0.3, 0.2, 0])


def test_nothing_is_known_of_a_pair_without_files(models):
    assert store.load(*models) is None


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        (GREEDY, GREEDY),
        (WARM, WARM),
        (Setting(temperature=0.7), WARM),
        (Setting(temperature=5.0, top_p=0.9), HOT),
        (Setting(temperature=0.1), WARM),
        (Setting(temperature=0.6, top_p=0.8), Setting(temperature=0.6, top_p=0.9)),
        (Setting(temperature=0.6, top_k=20), WARM),
        (Setting(temperature=0.0, top_k=40, top_p=0.5, min_p=0.1), GREEDY),
        (Setting(temperature=0.0, repetition_penalty=1.2), GREEDY),
    ],
)
def test_the_nearest_setting_that_was_measured(setting, nearest):
    settings = (GREEDY, WARM, HOT, Setting(temperature=0.6, top_p=0.9))
    known = PairAcceptance("a", "b", {other: Measurement(table(i / 10)) for i, other in enumerate(settings, start=1)})
    found, exact = known.nearest(setting)
    assert found is known.measurements[nearest].acceptance
    assert exact == (setting in settings)


def test_greedy_decoding_and_sampling_do_not_stand_in_for_one_another():
    assert pair(warm=0.5).nearest(GREEDY) is None
    assert pair(greedy=0.5).nearest(WARM) is None


def test_settings_are_made_of_samplings():
    assert Setting.of(Sampling(temperature=0.6)) == WARM
    assert Setting.of(Sampling(temperature=0, top_k=5)) == GREEDY


def test_fingerprints_tell_models_apart(models, tmp_path):
    assert store.checkpoint_fingerprint(models[0]) != store.checkpoint_fingerprint(models[1])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in models[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert store.checkpoint_fingerprint(copy) == store.checkpoint_fingerprint(models[0])
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2] + bytes(len(weights) - len(weights) // 2))
    assert store.checkpoint_fingerprint(copy) != store.checkpoint_fingerprint(models[0]), "a fine-tune"
    (copy / "model.safetensors").write_bytes(weights)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert store.checkpoint_fingerprint(copy) != store.checkpoint_fingerprint(models[0])
    with pytest.raises(ModelFilesError, match=r"model\.safetensors"):
        store.checkpoint_fingerprint(tmp_path)


def whole_record(models, tmp_path):
    store.write(tmp_path / "whole.json", pair(greedy=0.5, warm=0.6), models[0])
    return json.loads((tmp_path / "whole.json").read_text())


def damaged(record, **changes):
    first, *others = record["settings"]
    return {**record, "settings": [{**first, **changes}, *others]}


DAMAGES = {
    "not JSON": lambda record: "{",
    "not an object": lambda record: [record],
    "deeply nested": lambda record: "[" * 200_000,
    "nothing": lambda record: {},
    "another format": lambda record: {**record, "format": "tables, version 9"},
    "other bins": lambda record: {**record, "bin_edges": [0.5]},
    "other scales": lambda record: {**record, "scales": None},
    "fingerprint of a number": lambda record: {**record, "target_fingerprint": 5},
    "no settings": lambda record: {**record, "settings": []},
    "settings in words": lambda record: {**record, "settings": "all"},
    "entry of a number": lambda record: {**record, "settings": [1]},
    "no temperature": lambda record: {**record, "settings": [{"table": record["settings"][0]["table"]}]},
    "temperature in words": lambda record: damaged(record, temperature="warm"),
    "temperature below 0": lambda record: damaged(record, temperature=-1),
    "endless temperature": lambda record: damaged(record, temperature=float("inf")),
    "huge top_k": lambda record: damaged(record, top_k=10**400),
    "no table": lambda record: damaged(record, table=None),
    "table without counts": lambda record: damaged(record, table={}),
    "NaN": lambda record: damaged(record, table={**record["settings"][0]["table"], "scale_positions": float("nan")}),
    "agreement above 1": lambda record: damaged(record, agreement=1.5),
    "agreement in words": lambda record: damaged(record, agreement="good"),
    "bare list of words": lambda record: {"positional": ["much"]},
    "bare list of huge numbers": lambda record: {"positional": [10**400]},
    "bare list at no temperature": lambda record: {"positional": [0.5], "temperature": "any"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_beside_the_weights_and_harmless_in_the_cache(damage, models, beside, tmp_path):
    broken = DAMAGES[damage](whole_record(models, tmp_path))
    text = broken if isinstance(broken, str) else json.dumps(broken)
    cached = store.cache_file(*models)
    cached.parent.mkdir(parents=True)
    cached.write_text(text)
    assert store.load(*models) is None
    assert store.save(pair(warm=0.7), *models) and firsts(store.load(*models)) == {WARM: 0.7}
    beside.write_text(text)
    with pytest.raises(ModelFilesError, match=r"acceptance\.json: .*Correct or remove the file"):
        store.load(*models)


def test_files_that_cannot_be_read(models, beside, cache):
    beside.mkdir()
    try:
        with pytest.raises(ModelFilesError, match=r"acceptance\.json: cannot be read"):
            store.load(*models)
    finally:
        beside.rmdir()
    beside.write_bytes(b" " * (store.MAX_BYTES + 1))
    with pytest.raises(ModelFilesError, match="larger than 10,000,000 bytes"):
        store.load(*models)
    beside.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelFilesError, match="its JSON cannot be read"):
        store.load(*models)


@settings(max_examples=40)
@given(st.recursive(st.none() | st.floats() | st.text(max_size=5) | st.integers(), st.lists, max_leaves=8))
def test_whatever_a_bare_list_holds_is_read_or_named(tmp_path_factory, value):
    draft = tmp_path_factory.getbasetemp()
    (draft / store.ACCEPTANCE_FILE).write_text(json.dumps({"positional": value}))
    with pytest.raises(
        ModelFilesError, match=r'"positional" is wrong|model\.safetensors'
    ):  # of the file, or of no model
        store.load(draft, draft)


def test_a_cache_that_cannot_be_written(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/self/nowhere")):
        monkeypatch.setenv("SEQUOIA_OFFLOAD_CACHE", str(place))
        assert store.save(pair(warm=0.5), *models) is False
        assert store.load(*models) is None


def test_a_write_that_fails_leaves_the_old_file(models, tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    store.write(file, pair(warm=0.5), models[0])
    before = file.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write(file, pair(warm=0.6), models[0])
    assert file.read_bytes() == before and list(tmp_path.glob(".kept*")) == []


def test_where_the_cache_is(models, tmp_path, monkeypatch):
    def parent():
        return store.cache_file(*models).parent

    assert parent() == tmp_path / "cache" / "acceptance"
    monkeypatch.delenv("SEQUOIA_OFFLOAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert parent() == tmp_path / "xdg" / "sequoia-offload" / "acceptance"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert parent() == tmp_path / ".cache" / "sequoia-offload" / "acceptance"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert store.cache_file(*models) is None and store.load(*models) is None
    assert store.save(pair(warm=0.5), *models) is False


def test_the_file_of_the_bundled_pair():
    known = store.load(DEMO_TARGET, DEMO_DRAFT)
    assert {GREEDY, WARM, HOT} <= known.measurements.keys()
    for setting, one in known.measurements.items():
        assert one.acceptance.positions > 2000 and 0.5 < one.agreement < 0.8
        assert np.all(np.diff(one.acceptance.first_child()) >= 0)
        if setting.temperature:
            assert one.one_minus_tv == pytest.approx(one.acceptance.positional()[0], abs=1e-5)
    assert known.measurements[GREEDY].acceptance.scale() < 1
    assert (DEMO_DRAFT / store.ACCEPTANCE_FILE).stat().st_size < 60_000


def test_no_torch_is_imported():
    code = (
        "import sys; from offload_runtime.speculation.acceptance_store import load\n"
        "from offload_runtime.options.run_options import DEMO_DRAFT, DEMO_TARGET\n"
        "assert load(DEMO_TARGET, DEMO_DRAFT)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
