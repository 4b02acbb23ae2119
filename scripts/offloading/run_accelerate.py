"""Disk offload of `accelerate` by way of transformers: python run_accelerate.py JOB OUTCOME

Of the documented ways this is the fastest here: safetensors files are used in place. `load_checkpoint_and_dispatch` and
`disk_offload` write every weight to a file of its own first, and their passes take longer.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from offloading.cold_passes import Greedy, device_map, run_passes
from offloading.job import Job


def main(job_file: str, outcome_file: str) -> None:
    job = Job.read(job_file)
    layers = AutoConfig.from_pretrained(job.model, local_files_only=True).num_hidden_layers
    places = ["disk" if layer in job.streamed_layers else "cpu" for layer in range(layers)]  # as ours are
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=getattr(torch, job.dtype),
        device_map=device_map("cpu", places),
        offload_folder=job.directory,
        local_files_only=True,
    ).eval()
    loaded = time.perf_counter() - begin
    packages = ("accelerate", "transformers", "torch", "safetensors")
    run_passes(job, Greedy(model, model.config), loaded, packages).write(outcome_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
