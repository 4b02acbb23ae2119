"""Heads are told by their files, and every size and index in them is checked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loaders.errors import DraftMismatchError, ModelFilesError, UnsupportedModelError
from loaders.heads.head_files import is_head, read_head
from loaders.heads.kinds import Kind, head_kind
from loaders.heads.target_facts import TargetFacts
from tests.samples.head_samples import (
    LAYER,
    TARGET,
    change,
    dflash_config,
    eagle3_config,
    write_dflash,
    write_eagle3,
)

IDS = torch.tensor([0, 3, 4, 17, 40, 41, 77, 95])


@pytest.mark.parametrize("layout", ["specforge", "speculators"])
def test_both_layouts_of_eagle3_say_the_same(layout: str, tmp_path: Path) -> None:
    module = write_eagle3(tmp_path, layout, IDS, taps=(1, 2, 3))
    files = read_head(tmp_path, TARGET)
    assert files.kind is Kind.EAGLE3 and files.config.taps == (1, 2, 3)
    assert files.token_ids is not None and files.token_ids.tolist() == IDS.tolist()
    assert files.own_embeddings == (layout == "speculators") and files.own_output
    assert files.checkpoint.tensors.keys() == module.state_dict().keys()
    assert is_head(tmp_path)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("layout", ["authors", "speculators"])
def test_both_layouts_of_dflash_say_the_same(layout: str, second: bool, tmp_path: Path) -> None:
    module = write_dflash(tmp_path, layout, second)
    files = read_head(tmp_path, TARGET)
    assert files.kind is (Kind.DFLASH2 if second else Kind.DFLASH)
    assert files.config.taps == (1, 3) and files.config.depth == 4 and not files.own_output
    assert files.checkpoint.tensors.keys() == module.state_dict().keys()


def test_taps_that_are_not_stated_are_those_of_the_authors() -> None:
    config = {**eagle3_config(), "eagle_config": {}}
    from loaders.heads.eagle3_config import read_eagle3

    assert read_eagle3(Path("c"), config, TargetFacts("t", 80, 32, 96)).taps == (2, 40, 77)


def test_directions_of_sliding_layers() -> None:
    from loaders.heads.dflash_config import read_dflash

    kinds = ["sliding_attention", "full_attention"]

    def read(layout: str, **fields: Any) -> tuple[Any, Any]:
        config = dflash_config(layout, layer_types=kinds, sliding_window=9, **fields)
        head = read_dflash(Path("c"), config, Kind.DFLASH, TARGET)
        return head.windows, head.causal

    assert read("authors") == ((9, None), (True, False))
    assert read("authors", is_causal=False) == ((9, None), (False, False))
    assert read("speculators") == ((9, None), (True, False))
    assert read("speculators", sliding_window_non_causal=True) == ((9, None), (False, False))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["MedusaModel"], "medusa_num_heads": 4}, "Medusa"),
        ({"architectures": ["EagleLlamaForCausalLM"]}, "EAGLE-1"),
        ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "Eagle3DeepseekV2ForCausalLM"),
        ({"architectures": ["MLPSpeculatorPreTrainedModel"]}, "MLP speculator"),
        ({"speculators_model_type": "eagle", "speculators_config": {}}, "EAGLE-1"),
        ({"speculators_model_type": "peagle"}, "P-EAGLE"),
        ({"speculators_model_type": "dspark"}, "DSpark"),
        ({"speculators_config": {}}, "None"),
        ({"architectures": ["HassModel"]}, "HASS"),
    ],
)
def test_other_heads_are_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        head_kind(Path("config.json"), config)


def test_models_are_no_heads() -> None:
    for name in ("LlamaForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM"):
        assert head_kind(Path("config.json"), {"architectures": [name], **LAYER}) is None
    assert head_kind(Path("config.json"), {}) is None


def test_heads_that_only_their_tensors_tell(tmp_path: Path) -> None:
    write_eagle3(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **LAYER}))
    with pytest.raises(UnsupportedModelError, match="EAGLE-1 or EAGLE-2"):
        read_head(tmp_path, TARGET)


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"hidden_size": 48}, DraftMismatchError, "hidden states of width 48, target has 32"),
        ({"vocab_size": 100}, DraftMismatchError, "a vocabulary of 100, target has 96"),
        ({"taps": (1, 2, 4)}, ModelFilesError, "after layers 1, 2, 4, but target has 3 layers"),
        ({"taps": (0, 1, 2)}, ModelFilesError, "eagle_aux_hidden_state_layer_ids|after layers 0"),
        ({"draft_vocab_size": 97}, ModelFilesError, "draft_vocab_size is 97"),
        ({"draft_vocab_size": -1}, ModelFilesError, "draft_vocab_size"),
        ({"num_attention_heads": 0}, ModelFilesError, "num_attention_heads"),
        ({"norm_output": 1}, ModelFilesError, "norm_output is 1, but must be true or false"),
        ({"model_type": "mixtral"}, UnsupportedModelError, "mixtral"),
        ({"norm_before_fc": True, "fc_norm": True}, UnsupportedModelError, "exclude each other"),
    ],
)
@pytest.mark.parametrize("layout", ["specforge", "speculators"])
def test_wrong_fields_are_named(layout: str, fields: dict[str, Any], error: type, named: str, tmp_path: Path) -> None:
    write_eagle3(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(eagle3_config(layout, **fields)))
    with pytest.raises(error, match=named):
        read_head(tmp_path, TARGET)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d2t": IDS - torch.arange(8) + torch.tensor([0] * 7 + [1])}, "d2t is damaged: it leads outside"),
        ({"d2t": torch.full((8,), -1)}, "d2t is damaged: it leads outside"),
        ({"d2t": torch.full((8,), 1 << 62)}, "d2t is damaged: it leads outside"),
        ({"d2t": -torch.arange(8)}, "two of the head's tokens"),
        ({"d2t": torch.zeros(7, dtype=torch.int64)}, r"d2t is damaged: it is I64 \[7\]"),
        ({"d2t": torch.zeros(8)}, r"d2t is damaged: it is F32"),
        ({"t2d": torch.ones(96, dtype=torch.bool)}, "t2d is damaged: it marks other tokens"),
        ({"removed": "d2t"}, "d2t.*is missing"),
        ({"removed": "lm_head.weight"}, "lm_head.weight is missing"),
        ({"removed": "fc.weight"}, "fc.weight is missing"),
        ({"fc.weight": torch.zeros(32, 64)}, r"fc.weight is \[32, 64\]"),
        ({"layers.0.hidden_norm.weight": torch.zeros(32)}, "the same weight"),
    ],
)
def test_wrong_tensors_are_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    write_eagle3(tmp_path, token_ids=IDS)
    change(tmp_path, **changes)
    with pytest.raises(ModelFilesError, match=named):
        read_head(tmp_path, TARGET)


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"mask_token_id": 96}, ModelFilesError, "mask_token_id is 96"),
        ({"block_size": 1}, ModelFilesError, "block_size is 1"),
        ({"block_size": 1 << 20}, ModelFilesError, "block_size"),
        ({"target_layer_ids": [0, 3]}, ModelFilesError, "after layers 1, 4, but target has 3"),
        ({"target_layer_ids": []}, ModelFilesError, "target_layer_ids"),
        ({"hidden_size": 16}, DraftMismatchError, "hidden states of width 16"),
        ({"layer_types": ["full_attention"]}, ModelFilesError, "layer_types"),
        ({"final_logit_softcapping": "x"}, ModelFilesError, "final_logit_softcapping"),
        ({"conv_group_size": 5}, ModelFilesError, "conv_group_size is 5, but must be a divisor"),
        ({"selector_top_k": 97}, ModelFilesError, "selector_top_k is 97"),
    ],
)
def test_wrong_fields_of_block_drafts_are_named(
    fields: dict[str, Any], error: type, named: str, tmp_path: Path
) -> None:
    write_dflash(tmp_path, second=True)
    (tmp_path / "config.json").write_text(json.dumps(dflash_config(second=True, **fields)))
    with pytest.raises(error, match=named):
        read_head(tmp_path, TARGET)
