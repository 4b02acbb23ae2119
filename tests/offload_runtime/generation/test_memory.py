"""What the process really holds: loading makes no second copy of the weights, and a cap is kept while streaming.

The peak is the system's own count (resident set size), so it sees what the runtime's ledger might overlook.
"""

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig

from loaders.checkpoint.random_weights import write_random_checkpoint

MB = 1_000_000
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=24,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=512,
    eos_token_id=None,
)

MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from offload_runtime import OffloadRuntime

def peak():  # not getrusage's: that begins with the peak of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024

def generate(directory, **limits):
    with OffloadRuntime.from_pretrained(directory, device="cpu", draft="none", **limits) as runtime:
        reply = runtime.generate(list(range(1, 9)), max_new_tokens=4, temperature=0)
        return runtime.plan, reply

small, large, cap, io = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
generate(small, device_memory=cap or None, io=io)  # libraries, threads and code are in memory from here on
before = peak()
plan, reply = generate(large, device_memory=cap or None, io=io)
tiers = [tier.value for tier in plan.tiers]
print(json.dumps({"held": peak() - before, "counted": reply.stats.peak_device_bytes, "tiers": tiers}))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model of one layer to warm up with, and one of 24 layers: 403 MB of weights in float32."""
    directory = tmp_path_factory.mktemp("memory")
    for name, layers in (("small", 1), ("large", 24)):
        config = LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": layers})
        write_random_checkpoint(config, directory / name, dtype=torch.float32)
    return directory / "small", directory / "large"


def measure(checkpoints, cap: int, io: str) -> dict:
    command = [sys.executable, "-c", MEASURE, *map(str, checkpoints), str(cap), io]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def weight_bytes(directory) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_loading_holds_the_weights_once(checkpoints, io):
    weights = weight_bytes(checkpoints[1])
    measured = measure(checkpoints, 0, io)
    assert set(measured["tiers"]) == {"device"}
    assert 0.9 * weights < measured["held"] < 1.25 * weights
    assert weights < measured["counted"] < 1.25 * weights


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_a_cap_is_kept_while_streaming(checkpoints, io):
    cap = 120 * MB
    measured = measure(checkpoints, cap, io)
    assert "disk" in measured["tiers"] and weight_bytes(checkpoints[1]) > 3 * cap
    assert measured["counted"] <= cap
    assert measured["held"] < cap
