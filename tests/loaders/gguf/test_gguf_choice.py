"""Which GGUF model of a repository a name means, by the names of its files alone."""

import pytest

from loaders.errors import ModelFilesError
from loaders.gguf.choice import GgufModel, choose_gguf, gguf_models
from loaders.gguf.names import is_readable_kind, kind_of, model_stem

GB = 10**9
LARGE = ("Q8_0/Foo-70B-Q8_0-00001-of-00002.gguf", "Q8_0/Foo-70B-Q8_0-00002-of-00002.gguf")
SIZES = {
    "Foo-70B-IQ2_KS.gguf": 21 * GB,
    "Foo-70B-NVFP4.gguf": 26 * GB,
    "Foo-70B-Q4_0_4_8.gguf": 34 * GB,
    "Foo-70B-Q4_0.gguf": 40 * GB,
    "Foo-70B-Q4_K_S.gguf": 40 * GB + 1,
    "Foo-70B-Q4_K_M.gguf": 42 * GB,
    "Foo-70B-UD-Q4_K_M.gguf": 43 * GB,
    "foo-70b.q6_k.gguf": 58 * GB,
    **dict.fromkeys(LARGE, 37 * GB),
    "mmproj-Foo-70B-F16.gguf": GB,
    "Foo-70B-imatrix.gguf": GB,
}


def chosen(wanted: str | None, sizes: dict[str, int] = SIZES) -> tuple[str, ...]:
    return choose_gguf(gguf_models(sizes), wanted, "--model org/foo").files


def error_of(wanted: str | None, sizes: dict[str, int] = SIZES) -> str:
    with pytest.raises(ModelFilesError) as caught:
        chosen(wanted, sizes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("Q4_K_M", ("Foo-70B-Q4_K_M.gguf",)),
        ("q4_k_m", ("Foo-70B-Q4_K_M.gguf",)),
        ("UD-Q4_K_M", ("Foo-70B-UD-Q4_K_M.gguf",)),
        ("70b-q4_k_s", ("Foo-70B-Q4_K_S.gguf",)),
        ("Q6_K", ("foo-70b.q6_k.gguf",)),
        ("Q8_0", LARGE),
        ("foo-70b-q8_0", LARGE),
        *((file, LARGE) for file in (*LARGE, "Foo-70B-Q8_0-00002-of-00002.gguf")),
        ("Foo-70B-Q4_0.gguf", ("Foo-70B-Q4_0.gguf",)),
        ("NVFP4", ("Foo-70B-NVFP4.gguf",)),  # its header says better than its name why it cannot be run
    ],
)
def test_a_tag_or_a_file_means_one_model(wanted: str, files: tuple[str, ...]) -> None:
    assert chosen(wanted) == files


@pytest.mark.parametrize(
    "wanted", ["K_M", "_K_M", "4_0", "Q4", "Q4_K", "gguf", "Foo", "foo-70b-q4_0.GGUF", "F16", "x.gguf"]
)
def test_what_means_none_is_refused_with_the_list(wanted: str) -> None:
    lines = error_of(wanted).splitlines()
    assert lines[0] == f"it holds 9 models in GGUF files, and {wanted} is none of them. Name one of them:"
    assert [line.split() for line in lines[1:-1]] == [
        ["--model", f"org/foo:{tag}", size, "GB"]
        for tag, size in (
            *(("Q4_0", "40.0"), ("Q4_K_S", "40.0"), ("Q4_K_M", "42.0")),
            *(("UD-Q4_K_M", "43.0"), ("q6_k", "58.0"), ("Q8_0", "74.0")),
        )
    ]
    assert lines[-1] == "  (3 more cannot be run: stored as NVFP4, Q4_0_4_8 or the like, or incomplete)"


def test_every_choice_that_is_listed_means_what_it_stands_for() -> None:
    sizes = {**SIZES, "Bar-Q4_0.gguf": 5, "other/Bar-Q8_0.gguf": 6, "Bar-Q8_0.gguf": 7, "plain.gguf": 8}
    models = {file: model for model in gguf_models(sizes) for file in model.files}
    typed = [line.split()[1].removeprefix("org/foo:") for line in error_of("nothing", sizes).splitlines()[1:-1]]
    listed = [chosen(text, sizes) for text in typed]
    assert sorted(listed) == sorted({model.files for model in models.values() if model.can_run})
    assert {"Bar-Q4_0", "other/Bar-Q8_0.gguf", "plain"} <= set(typed)
    assert "Bar-Q8_0 means 2 of them" in error_of("Bar-Q8_0", sizes)
    assert "Bar-Q8_0.gguf means 2 of them" in error_of("Bar-Q8_0.gguf", {"a/Bar-Q8_0.gguf": 1, "b/Bar-Q8_0.gguf": 1})


def test_without_a_tag() -> None:
    assert chosen(None) == ("Foo-70B-Q4_K_M.gguf",)
    assert chosen(None, {"a-Q8_0.gguf": 1, "mmproj-a-F16.gguf": 1}) == ("a-Q8_0.gguf",)
    assert chosen(None, {"a-IQ4_XS.gguf": 1}) == ("a-IQ4_XS.gguf",)
    assert chosen(None, dict.fromkeys(LARGE, 1)) == LARGE
    message = error_of(None, {"a-Q8_0.gguf": 2_000_000, "a-IQ4_KS.gguf": 1})
    assert message.startswith("it holds 2 models in GGUF files. Name one of them:\n  --model org/foo:Q8_0   2.00 MB\n")
    assert "IQ4_KS" not in message
    assert error_of(None, {"a-Q4_K_M.gguf": 1, "b-Q4_K_M.gguf": 1}).count("--model org/foo:") == 2


def test_a_name_that_is_another_s_end() -> None:
    sizes = {"Foo-Q8_0.gguf": 1, "Big-Foo-Q8_0.gguf": 2}
    assert [chosen(name, sizes) for name in ("foo-q8_0", "big-foo-q8_0")] == [(name,) for name in sizes]
    assert "Q8_0 means 2 of them" in error_of("Q8_0", sizes)


def test_of_very_many_some_are_listed() -> None:
    lines = error_of(None, {f"{number}-Q8_0.gguf": number for number in range(40)}).splitlines()
    assert (len(lines), lines[-1]) == (18, "  and 24 more")


def test_no_models_at_all() -> None:
    assert error_of("Q8_0", {"mmproj-F16.gguf": 1, "model.safetensors": 1}) == (
        "it holds no model in GGUF files. Leave out :Q8_0, or take another repository."
    )


@pytest.mark.parametrize("there", [LARGE[:1], LARGE[1:]])
def test_a_model_of_which_files_are_missing(there: tuple[str, ...]) -> None:
    sizes = {**dict.fromkeys(there, 1), "Foo-Q4_0.gguf": 1}
    (absent,) = set(LARGE) - set(there)
    assert error_of("Q8_0", sizes).startswith(
        f"it is incomplete: 1 of the 2 files of Foo-70B-Q8_0 are missing, the first is {absent}."
    )
    assert "org/foo:Q8_0" not in error_of(None, sizes)


def test_counts_that_cannot_be() -> None:
    assert gguf_models({"a-00001-of-99999.gguf": 1, "a-00000-of-00000.gguf": 1}) == []
    assert gguf_models({"a-00007-of-00002.gguf": 1})[0].missing


@pytest.mark.parametrize(
    ("name", "stem", "kind", "readable"),
    [
        ("dir/Foo-7B-Instruct-Q4_K_M.gguf", "Foo-7B-Instruct-Q4_K_M", "Q4_K_M", True),
        ("llama-2-7b.Q5_K_S.gguf", "llama-2-7b.Q5_K_S", "Q5_K_S", True),
        ("qwen-fp16-00001-of-00004.gguf", "qwen-fp16", "fp16", True),
        ("Foo-BF16.gguf", "Foo-BF16", "BF16", True),
        ("Foo-UD-Q4_K_XL.gguf", "Foo-UD-Q4_K_XL", "UD-Q4_K_XL", True),
        ("Foo-UD-IQ1_S.gguf", "Foo-UD-IQ1_S", "UD-IQ1_S", True),
        ("foo-iq3_m.gguf", "foo-iq3_m", "iq3_m", True),
        ("foo-Q2_K_L.gguf", "foo-Q2_K_L", "Q2_K_L", True),
        ("foo-Q3_K_XL.gguf", "foo-Q3_K_XL", "Q3_K_XL", True),
        ("foo-TQ1_0.gguf", "foo-TQ1_0", "TQ1_0", True),
        ("gpt-oss-mxfp4.gguf", "gpt-oss-mxfp4", "mxfp4", True),
        ("foo-IQ4_KSS.gguf", "foo-IQ4_KSS", "IQ4_KSS", False),
        ("foo-iq3_kt.gguf", "foo-iq3_kt", "iq3_kt", False),
        ("foo-NVFP4.gguf", "foo-NVFP4", "NVFP4", False),
        ("foo-Q4_0_4_8.gguf", "foo-Q4_0_4_8", "Q4_0_4_8", False),
        ("phi-3-mini-q4.gguf", "phi-3-mini-q4", "q4", True),
        ("ggml-model.gguf", "ggml-model", "", True),
    ],
)
def test_what_names_say(name: str, stem: str, kind: str, readable: bool) -> None:
    assert model_stem(name) == stem and (kind_of(stem) or "") == kind and is_readable_kind(kind) is readable
    assert GgufModel((name,), 1).can_run is readable
