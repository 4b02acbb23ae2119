"""AirLLM on a processor, as its documentation says: python run_airllm.py JOB OUTCOME

At its first start it writes a file per layer, which later starts find. It wants a tokenizer beside the weights, so it
gets a directory of links to the model's files, and where they hold none, one that knows a single word.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from airllm import AutoModel
from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerFast

from offloading.cold_passes import Greedy, run_passes
from offloading.job import Job


def main(job_file: str, outcome_file: str) -> None:
    job = Job.read(job_file)
    view = _with_tokenizer(job)
    begin = time.perf_counter()
    model = AutoModel.from_pretrained(
        str(view), device="cpu", dtype=getattr(torch, job.dtype), layer_shards_saving_path=job.directory
    )
    loaded = time.perf_counter() - begin
    config = AutoConfig.from_pretrained(job.model, local_files_only=True)
    packages = ("airllm", "transformers", "torch", "safetensors")
    run_passes(job, Greedy(model, config), loaded, packages).write(outcome_file)


def _with_tokenizer(job: Job) -> Path:
    """Links to the model's files in a directory that has a tokenizer."""
    view = Path(job.directory) / "model"
    if view.is_dir():
        return view
    view.mkdir(parents=True)
    for file in Path(job.model).iterdir():
        (view / file.name).symlink_to(file.resolve())
    if not list(view.glob("tokenizer*")):
        words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(view)
    return view


if __name__ == "__main__":
    main(*sys.argv[1:])
