"""Sizes are counted as transformers keeps tensors: the table of what stays in float32 is held to its models."""

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from loaders import kept_in_float32
from loaders.checkpoint.model_source import model_source
from loaders.checkpoint.read_spec import read_spec
from loaders.checkpoint.refused import REFUSED
from loaders.kept_in_float32 import itemsizes
from loaders.modules.conversion import model_slices
from loaders.modules.skeleton import build_skeleton
from loaders.text_part import NOT_READ
from tests.samples.architectures import SWEEP
from tests.samples.multimodal import checkpoints as multimodal
from tests.samples.tiny_models import checkpoint

LISTED = kept_in_float32._IN_16_BITS | kept_in_float32._IN_FLOAT16
FAMILIES = sorted(family for family in LISTED if family in CONFIG_MAPPING and (family in SWEEP or family in NOT_READ))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_stored_tensor_counts_as_its_slot(family):
    """By the names that files have; sizes of whole layers hide what alignment adds."""
    directory = multimodal.checkpoint(family) if family in NOT_READ else checkpoint(family)
    tensors = model_source(directory).checkpoint().tensors
    for dtype in ("bfloat16", "float16"):
        skeleton = build_skeleton(directory, getattr(torch, dtype), "cpu", "eager")
        places = {
            f"{layer.name}.{place.name}".lstrip("."): place.dtype.itemsize
            for layer in (*skeleton.layers, skeleton.embeddings_and_head)
            for place in layer.layout.places
        }
        counted = itemsizes((family, family), dtype)
        slots = {part.stored.name: places[part.target] for part in model_slices(skeleton.model, tensors)}
        assert {name: counted(name) for name in slots if tensors[name].dtype == "F32"} == {
            name: itemsize for name, itemsize in slots.items() if tensors[name].dtype == "F32"
        }
        if family in NOT_READ:
            continue  # what images pass through is stored beside it, in tensors of both
        spec = read_spec(directory, dtype)
        assert [layer.nbytes for layer in spec.layers] == [layer.layout.nbytes for layer in skeleton.layers]
        assert spec.embeddings_and_head_bytes == skeleton.embeddings_and_head.layout.nbytes


def test_every_family_of_which_transformers_keeps_something_is_known():
    listed = {
        "_keep_in_fp32_modules_strict": kept_in_float32._IN_16_BITS,
        "_keep_in_fp32_modules": kept_in_float32._IN_FLOAT16,
    }
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        for config, found in mapping.items():
            family = config.model_type
            text = getattr(config.sub_configs.get("text_config"), "model_type", family)
            if REFUSED.keys() & {family, text} or not (family in SWEEP or family in NOT_READ):
                continue
            for kind in found if isinstance(found, tuple) else (found,):
                for attribute, table in listed.items():
                    assert not getattr(kind, attribute, None) or family in table, (family, attribute)
