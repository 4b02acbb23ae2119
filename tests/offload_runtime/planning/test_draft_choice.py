"""`--draft auto`: the family is told by tokens, the fastest draft in the cache is taken, none is ever downloaded."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.checkpoint.model_source import read_vocabulary
from loaders.checkpoint.spec import HeadSizes, ModelSpec, StateSizes
from loaders.hub import cache as hub_cache
from loaders.hub.cache import cached_model
from loaders.sizes import GIB
from offload_runtime.chat.status import start_notes
from offload_runtime.errors import DraftMismatchError, ModelFilesError
from offload_runtime.options.run_options import DEMO_TARGET, Options
from offload_runtime.planning import draft_choice, planning
from offload_runtime.planning import expected_acceptance as expected
from offload_runtime.planning.draft_choice import DraftChoice, choose_draft
from offload_runtime.planning.draft_table import FAMILIES, HEADS, Candidate, TokenFamily, family_of, heads_of
from offload_runtime.planning.expected_acceptance import ExpectedAcceptance, assumed_acceptance
from offload_runtime.planning.forecast import forecast
from offload_runtime.planning.planning import prepare
from offload_runtime.speculation import acceptance_store
from offload_runtime.speculation.acceptance_store import Measurement, PairAcceptance, Setting
from scheduler.machine.data_sheets import planned_machine
from scheduler.machine.machine import Machine
from scheduler.plan.plan import Limits
from sequoia_tree.acceptance.acceptance import Acceptance
from sequoia_tree.shapes.construct import DEFAULT_ACCEPTANCE
from tests.plan_samples import LLAMA3_70B, cpu, gpu
from tests.samples.gguf_samples import write_gguf
from tests.samples.head_samples import write_eagle3
from tests.samples.tiny_models import checkpoint

LLAMA_3 = FAMILIES["Llama 3"]
ONE, THREE, EIGHT = (candidate.name for candidate in LLAMA_3.candidates)


def vocabulary_of(family: TokenFamily) -> dict[str, int]:
    """The landmarks, and a token that all families have."""
    return {"!": 0, **family.landmarks}


def write_vocabulary(directory: Path, vocabulary: dict[str, int]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    return directory


@pytest.fixture
def target(tmp_path: Path, measured: dict[Path, PairAcceptance]) -> ModelSpec:
    return replace(LLAMA3_70B, directory=write_vocabulary(tmp_path / "target", vocabulary_of(LLAMA_3)))


@pytest.fixture
def present(tmp_path: Path) -> Callable[..., Callable[[str], Path | None]]:
    """Models that are "in the cache": their vocabularies by name, all of Llama 3."""

    def locate(*names: str) -> Callable[[str], Path | None]:
        places = {name: write_vocabulary(tmp_path / name, vocabulary_of(LLAMA_3)) for name in names}
        return places.get

    return locate


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Path, PairAcceptance]:
    """What was measured of each draft; nothing unless a test does."""
    known: dict[Path, PairAcceptance] = {}
    monkeypatch.setattr(acceptance_store, "load", lambda target, draft: known.get(draft))
    return known


def spec_of(directory: Path) -> ModelSpec:
    """What reading a candidate's files would give."""
    name = "/".join(directory.parts[-2:])
    candidate = next(c for family in FAMILIES.values() for c in family.candidates if c.name == name)
    return replace(candidate.spec("bfloat16"), directory=directory)


def fast_gpu() -> Machine:
    return planned_machine("RTX 4090", cpu(64 * GIB), 256 * GIB)


def choose(target: ModelSpec, locate: Callable[[str], Path | None], machine: Machine | None = None) -> DraftChoice:
    vocabulary = read_vocabulary(target.directory)
    return choose_draft(target, vocabulary, machine or fast_gpu(), Limits(), spec_of, locate)


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_is_told_from_the_others(key: str) -> None:
    family = FAMILIES[key]
    assert family_of(vocabulary_of(family), f"models/{family.word or 'x'}-33b") == key
    assert family_of({"!": 0}, "llama") is None


def test_vicuna_has_llama_2s_tokens_and_a_name_of_its_own() -> None:
    vocabulary = vocabulary_of(FAMILIES["Llama 2"])
    assert family_of(vocabulary, "hub/models--lmsys--Vicuna-33b-v1.3/snapshots/ab") == "Vicuna"
    assert family_of(vocabulary, "Llama-2-70b") == "Llama 2"


@pytest.mark.parametrize("candidate", [c for f in FAMILIES.values() for c in f.candidates], ids=lambda c: c.name)
def test_the_sizes_of_the_table_agree_with_each_other(candidate: Candidate) -> None:
    """Parameters follow from the shape: attention, three matrices of the MLP, embeddings."""
    layer = candidate.hidden * (2 * candidate.hidden + candidate.cached + 3 * candidate.intermediate)
    embeddings_and_head = candidate.rows * candidate.hidden * (1 if candidate.tied else 2)
    assert candidate.layers * layer + embeddings_and_head == pytest.approx(candidate.millions * 1e6, rel=0.1)
    spec = candidate.spec("float16")
    weights = sum(layer.nbytes for layer in spec.layers) + spec.embeddings_and_head_bytes
    assert weights == pytest.approx(candidate.millions * 2e6, rel=1e-3)


def test_the_draft_in_the_cache_is_taken(target: ModelSpec, present: Callable) -> None:
    choice = choose(target, present(THREE))
    assert choice.directory is not None and choice.directory.name == THREE.split("/")[1] and choice.note is None


def test_of_several_the_one_predicted_fastest(target: ModelSpec, present: Callable, monkeypatch) -> None:
    taken = []
    for acceptance in ({ONE: 0.9, THREE: 0.9, EIGHT: 0.9}, {ONE: 0.1, THREE: 0.9, EIGHT: 0.9}):
        millions = {c.millions: acceptance[c.name] for c in LLAMA_3.candidates}
        monkeypatch.setattr(draft_choice, "assumed_acceptance", lambda size, m=millions: (m[size], 0.02))
        taken.append(choose(target, present(ONE, THREE, EIGHT)).directory.name)
    assert taken == [ONE.split("/")[1], THREE.split("/")[1]]


def test_of_several_the_smallest_where_speeds_are_unknown(target: ModelSpec, present: Callable) -> None:
    for machine in (gpu(24 * GIB), cpu(256 * GIB)):
        assert choose(target, present(THREE, ONE, EIGHT), machine).directory.name == ONE.split("/")[1]


def test_without_one_in_the_cache_the_fastest_is_proposed(target: ModelSpec, present: Callable) -> None:
    choice = choose(target, present())
    assert choice.directory is None and choice.note is not None and "\n" not in choice.note
    assert choice.note.startswith("--draft meta-llama/Llama-3.") and "x as fast (a download of " in choice.note


def head_of(target: ModelSpec, layers: int) -> ModelSpec:
    """A head as large as so many layers of the target."""
    one = target.layers[0]
    return replace(
        target,
        name=f"the head of {target.name}",
        layers=tuple(replace(one, name=str(number)) for number in range(layers)),
        embeddings_and_head_bytes=2 * target.hidden_size**2 * 2,
        kv_bytes_per_token=layers * target.kv_layer_bytes,
        head=HeadSizes(target.hidden_size, target.hidden_size),
    )


def test_the_models_own_head_is_taken_where_it_is_faster(target: ModelSpec, present: Callable, monkeypatch) -> None:
    """The same acceptance: then what takes less time to draft is faster, which a head of one layer is beside 8 billion
    parameters, and one of twenty layers is not beside one billion."""
    monkeypatch.setattr(draft_choice, "assumed_acceptance", lambda size: (0.69, 0.05))
    vocabulary = read_vocabulary(target.directory)
    for layers, name, head in ((1, EIGHT, True), (20, ONE, False)):
        choice = choose_draft(
            target, vocabulary, fast_gpu(), Limits(), spec_of, present(name), head=head_of(target, layers)
        )
        assert choice.head == head and (choice.directory is None) == head
        if head:
            assert choice.note == (
                "The head in the model's own files takes 1.98 GB, meta-llama/Llama-3.2-1B-Instruct as the draft would "
                "take 2.47 GB."
            )


def test_a_head_is_taken_where_no_draft_is_known(target: ModelSpec) -> None:
    choice = choose_draft(target, None, fast_gpu(), Limits(), spec_of, lambda name: None, head=head_of(target, 1))
    assert choice == DraftChoice(head=True)


def published(target: ModelSpec, name: str, locate: Callable[[str], Path | None], layers: int = 1) -> DraftChoice:
    """The choice for a target of this name, whose published heads are as large as so many of its layers."""
    named = replace(target, name=name)

    def read(directory: Path) -> ModelSpec:
        if not any(directory.as_posix().endswith(head) for head in heads_of(name)):
            return spec_of(directory)
        return replace(head_of(named, layers), name=f"EAGLE-3 head {directory.name}", directory=directory)

    return choose_draft(named, read_vocabulary(target.directory), fast_gpu(), Limits(), read, locate)


def test_a_published_head_in_the_cache_is_taken_where_it_is_faster(
    target: ModelSpec, present: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_choice, "assumed_acceptance", lambda size: (0.69, 0.05))
    head = HEADS["llama-3.3-70b-instruct"][0]
    choice = published(target, "Llama-3.3-70B-Instruct", present(EIGHT, head))
    assert choice.directory == present(head)(head) and not choice.head
    assert choice.note == (
        "The EAGLE-3 head Llama-3.3-70B-Instruct-speculator.eagle3 takes 1.98 GB, meta-llama/Llama-3.2-1B-Instruct as "
        "the draft would take 2.47 GB."
    )
    large = published(target, "Llama-3.3-70B-Instruct", present(ONE, head), layers=20)
    assert large.directory == present(ONE)(ONE) and large.note is None
    assert published(target, "Llama-3.1-70B-Instruct", present(EIGHT, head)).directory is None, "not of this target"


def test_a_published_head_that_is_not_here_is_named(target: ModelSpec, present: Callable) -> None:
    named = "--draft RedHatAI/Llama-3.3-70B-Instruct-speculator.eagle3 drafts with a head that is published for this"
    note = published(target, "Llama-3.3-70B-Instruct", present()).note
    assert note.startswith("--draft meta-llama/Llama-3.") and named in note and "\n" not in note
    assert published(target, "Llama-3.3-70B-Instruct", present(ONE)).note is None, "a draft that pays is here"
    unknown = replace(target, name="Llama-3.3-70B-Instruct")
    assert choose_draft(unknown, None, fast_gpu(), Limits(), spec_of, present()).note.startswith(named)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M", "llama-3.1-8b-instruct"),
        ("Qwen/Qwen3-8B-AWQ", "qwen3-8b"),
        ("Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b-instruct-2507"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
        ("Qwen3-4B-Instruct-2507", None),
        ("Qwen3-8B-Base", None),
        ("Qwen3-0.6B", None),
    ],
)
def test_the_target_of_a_head_is_told_by_its_name(name: str, key: str | None) -> None:
    assert heads_of(name) == (HEADS[key] if key else ())


def test_what_the_table_says_is_checked_token_by_token(target: ModelSpec, present: Callable) -> None:
    locate = present(ONE)
    other = {**vocabulary_of(LLAMA_3), "!": 7}
    write_vocabulary(locate(ONE), other)
    assert choose(target, locate).directory is None
    (locate(ONE) / "tokenizer.json").unlink()
    assert choose(target, locate).directory is None, "nothing to tell by"


def test_damaged_drafts_are_passed_over(target: ModelSpec, present: Callable) -> None:
    def damaged(directory: Path) -> ModelSpec:
        if directory.name == ONE.split("/")[1]:
            raise ModelFilesError("torn")
        return spec_of(directory)

    vocabulary = read_vocabulary(target.directory)
    choice = choose_draft(target, vocabulary, fast_gpu(), Limits(), damaged, present(ONE, THREE))
    assert choice.directory is not None and choice.directory.name == THREE.split("/")[1]


def test_a_draft_must_be_much_smaller_than_the_target(target: ModelSpec, present: Callable) -> None:
    eight = replace(spec_of(Path(EIGHT)), directory=target.directory)
    assert choose(eight, present(EIGHT)).directory is None
    assert choose(target, present(EIGHT)).directory is None, "it does not fit beside the ring on 24 GB"
    assert choose(target, present(EIGHT), planned_machine("L40", cpu(GIB), 256 * GIB)).directory is not None


def test_what_was_measured_counts_more_than_what_is_assumed(
    target: ModelSpec, present: Callable, measured: dict[Path, PairAcceptance]
) -> None:
    locate = present(ONE, THREE)
    for name, first in ((ONE, 0.05), (THREE, 0.9)):
        table = Acceptance.from_positional([first, 0.01], 10_000)
        measured[locate(name)] = PairAcceptance("", "", {Setting(temperature=0.6): Measurement(table)})
    assert choose(target, locate).directory == locate(THREE)
    measured[locate(ONE)], measured[locate(THREE)] = measured[locate(THREE)], measured[locate(ONE)]
    assert choose(target, locate).directory == locate(ONE)


def test_a_draft_that_does_not_pay_is_not_taken(
    target: ModelSpec, present: Callable, measured: dict[Path, PairAcceptance]
) -> None:
    locate = present(THREE)
    table = Acceptance.from_positional([0.0, 0.0], 10_000)
    measured[locate(THREE)] = PairAcceptance("", "", {Setting(temperature=0.6): Measurement(table)})
    assert choose(target, locate) == DraftChoice(note=draft_choice.UNKNOWN_NOTE)


def l40() -> Machine:
    return planned_machine("L40", cpu(64 * GIB), 256 * GIB)


def test_a_copy_is_taken_where_nothing_faster_is_here(target: ModelSpec, present: Callable) -> None:
    choice = choose(target, present(), l40())
    assert (choice.copy_bits, choice.directory, choice.head) == (3, None, False), "more bits do not fit"
    assert choice.note is not None and "\n" not in choice.note
    assert choice.note.startswith("A 3-bit copy of the model drafts: ") and " without a draft. --draft " in choice.note


def test_a_copy_is_compared_with_drafts_in_the_cache(target: ModelSpec, present: Callable, monkeypatch) -> None:
    assert choose(target, present(ONE), l40()).directory.name == ONE.split("/")[1]
    monkeypatch.setattr(expected, "_COPY_ACCEPTED", {3: 0.9, 4: 0.9, 5: 0.9})
    monkeypatch.setattr(draft_choice, "assumed_acceptance", lambda millions: (0.3, 0.1))
    choice = choose(target, present(EIGHT), l40())
    assert choice.copy_bits == 3 and f" with {EIGHT}, " in choice.note and "download" not in choice.note


def test_acceptance_counts_that_is_known_by_other_files(target: ModelSpec, present: Callable) -> None:
    """As of a model whose packed files lie elsewhere: what was measured with the model itself."""
    vocabulary = read_vocabulary(target.directory)
    never = ExpectedAcceptance((0.001,), True)
    for accepted, bits in ((None, 3), (lambda spec: never, None)):
        choice = choose_draft(target, vocabulary, l40(), Limits(), spec_of, present(), accepted=accepted)
        assert choice.copy_bits == bits


def test_no_copy_where_it_would_not_help(target: ModelSpec, present: Callable, monkeypatch) -> None:
    locate = present()
    assert choose(target, locate, gpu(48 * GIB)).copy_bits is None, "the machine's speed is not known"
    small = replace(target, layers=target.layers[:8])
    assert choose(small, locate, l40()).copy_bits is None, "it fits whole"
    states = StateSizes(1, 1, 1, 1)
    recurrent = replace(target, recurrent=True, states=states)
    assert recurrent.can_branch and choose(recurrent, locate, l40()).copy_bits is None
    monkeypatch.setattr(expected, "_COPY_ACCEPTED", {3: 0.001, 4: 0.001, 5: 0.001})
    assert choose(target, locate, l40()).copy_bits is None, "layers in its place would save more"


def test_a_recurrent_target_and_an_unknown_one_get_none(target: ModelSpec, present: Callable, tmp_path: Path) -> None:
    assert "recurrent state" in choose(replace(target, recurrent=True), present(ONE)).note
    unknown = replace(target, directory=write_vocabulary(tmp_path / "unknown", {"a": 0}))
    assert choose(unknown, present(ONE)).directory is None
    assert choose(replace(target, directory=tmp_path), present(ONE)).directory is None, "no tokenizer"


def test_assumed_acceptances() -> None:
    assert assumed_acceptance(8030)[:5] == pytest.approx(DEFAULT_ACCEPTANCE[:5])
    firsts = [assumed_acceptance(millions)[0] for millions in (1, 68, 494, 1236, 3213, 8030, 13_000)]
    assert firsts == sorted(firsts) and 0.4 < firsts[1] < 0.6
    for millions in (1, 68, 8030):
        vector = assumed_acceptance(millions)
        assert sum(vector) <= 1 + 1e-9 and list(vector) == sorted(vector, reverse=True)


# Through the whole preparation, with a hub cache on disk


def cache_with(root: Path, name: str, model: Path, vocabulary: dict[str, int]) -> Path:
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abc"
    shutil.copytree(model, snapshot)
    write_vocabulary(snapshot, vocabulary)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    return snapshot


@pytest.fixture
def tiny_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A tiny target with Llama 3's landmarks, beside a cache that holds a tiny "Llama-3.2-1B-Instruct"."""
    words = vocabulary_of(LLAMA_3)
    target, root = tmp_path / "target", tmp_path / "hub"
    shutil.copytree(checkpoint("llama"), target)
    write_vocabulary(target, words)
    monkeypatch.setenv("HF_HUB_CACHE", str(root))
    return target, cache_with(root, ONE, checkpoint("llama", seed=4, num_hidden_layers=1), words)


def test_auto_finds_the_draft_in_the_hubs_cache(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = tiny_pair
    prepared = prepare(Options(target, "auto", device="cpu"))
    assert prepared.drafter == draft and prepared.plan.draft == draft.name and prepared.draft_note is None
    assert prepare(Options(target, None, device="cpu")).draft is None
    assert prepare(Options(target, "auto", device="cpu", tree="none")).draft is None
    monkeypatch.setenv("HF_HUB_CACHE", str(target))
    without = prepare(Options(target, "auto", device="cpu"))
    assert without.draft is None and without.plan.tree_size > 1


def test_auto_takes_a_published_head_in_the_hubs_cache_unless_it_is_for_other_sizes(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = tiny_pair
    name = "RedHatAI/Qwen3-8B-speculator.eagle3"
    monkeypatch.setattr(draft_choice, "_predicted", lambda spec, *rest: (1.0 if spec.head else 2.0, 2.0))
    local = target.rename(tmp_path / "Qwen3-8B")
    write_eagle3(tmp_path / "head", own_output=False)
    head = cache_with(tmp_path / "hub", name, tmp_path / "head", {})
    prepared = prepare(Options(local, "auto", device="cpu"))
    assert prepared.drafter == head and prepared.draft_note.startswith("The EAGLE-3 head ")
    assert prepared.draft_note == prepare(Options(local, head, device="cpu")).draft_note, "also where it is named"
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert prepare(Options(local, "auto", device="cpu")).drafter == draft


def test_the_copy_that_auto_chooses_is_planned(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = tiny_pair
    choice = DraftChoice(note="why", copy_bits=5)
    monkeypatch.setattr(planning, "choose_draft", lambda *args, **kwargs: choice)
    prepared = prepare(Options(target, "auto", device="cpu"))
    assert prepared.draft.spec.copy_bits == 5 and prepared.draft_note == "why" and prepared.drafter == 5
    assert "5-bit copy" in prepared.plan.draft and prepared.acceptance == expected.assumed_for(prepared.draft.spec)
    assert "why" in list(start_notes(prepared)) and "why" in list(forecast(prepared))


def test_a_gguf_file_s_family_is_told_by_the_tokens_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[Path, PairAcceptance]
) -> None:
    file = write_gguf(DEMO_TARGET, tmp_path / "demo-Q8_0.gguf", lambda tensor: "Q8_0")
    target, words = replace(LLAMA3_70B, directory=file), read_vocabulary(DEMO_TARGET)
    draft = write_vocabulary(tmp_path / ONE, words)
    assert choose(target, {ONE: draft}.get) == DraftChoice(note=draft_choice.UNKNOWN_NOTE)
    monkeypatch.setitem(FAMILIES, "Llama 3", replace(LLAMA_3, landmarks={"<|user|>": words["<|user|>"]}))
    assert choose(target, {ONE: draft}.get) == DraftChoice(draft)
    write_vocabulary(draft, {**words, "<|user|>": 0})
    assert choose(target, {ONE: draft}.get).directory is None


def test_a_named_draft_with_other_tokens_is_refused_before_anything_is_loaded(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = tiny_pair
    write_vocabulary(draft, {**vocabulary_of(LLAMA_3), "!": 3})
    with pytest.raises(DraftMismatchError, match="token '!' is 0 in the target and 3 in the draft"):
        prepare(Options(target, draft, device="cpu"))


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache.hub_cache() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache.hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/h")
    assert hub_cache.hub_cache() == Path("/h/hub")


def test_only_whole_models_count_as_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = cache_with(tmp_path, "a/b", checkpoint("llama"), {"!": 0})
    assert cached_model("a/b") == snapshot and cached_model("a/c") is None
    reference = tmp_path / "models--a--b/refs/main"
    for commit in ("", "..", "../0123abc", "\x00"):
        reference.write_text(commit)
        assert cached_model("a/b") is None
    reference.write_text("0123abc\n")
    assert cached_model("a/b") == snapshot
    (snapshot / "model.safetensors").unlink()
    assert cached_model("a/b") is None


def test_choosing_needs_no_torch() -> None:
    code = "import sys, offload_runtime.planning.draft_choice; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3]).returncode == 0
