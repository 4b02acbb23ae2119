"""The prompt cache of loaded models."""

from pathlib import Path

from offload_runtime.loading.models import LoadedModels
from offload_runtime.options.run_options import Options
from offload_runtime.planning.planning import Preparation
from offload_runtime.prompt_cache.folder import Folder
from offload_runtime.prompt_cache.identity import model_identity
from offload_runtime.prompt_cache.notes import Notes
from offload_runtime.prompt_cache.prompt_cache import Between, PromptCache
from offload_runtime.prompt_cache.stored_rows import StoredRows
from scheduler.plan.pass_cost import PassCost


def open_folder(options: Options) -> Folder | None:
    """The directory that the options name, created if it is missing. Raises UsageError if it cannot be used."""
    if options.prompt_cache is None:
        return None
    return Folder(Path(options.prompt_cache), options.prompt_cache_size)


def open_prompt_cache(
    folder: Folder | None, preparation: Preparation, models: LoadedModels, between: Between
) -> PromptCache | None:
    """The cache in `folder` for these models; None without a folder, or for models whose state has no rows."""
    if folder is None:
        return None
    notes, target, plan = Notes(), models.target.model, models.plan
    if target.cache.has_states:
        notes.say("state", f"{target.config.model_type} keeps a recurrent state, which has no rows to keep")
        notes.warn()
        return None
    cost = plan.target_cost(preparation.target.spec)
    pace = None if plan.slots else _seconds_per_token(cost, plan.rows)  # no disk is slower than streaming all layers
    identity = model_identity(preparation.target, plan.device)
    stored = [StoredRows(target, identity, folder, pace, notes)]
    has_own_rows = preparation.draft and not preparation.draft.head and not preparation.draft.spec.copy_bits
    draft = models.draft if has_own_rows else None  # a head's rows lack features
    if draft and preparation.draft and not draft.model.cache.has_states:
        pace = _seconds_per_token(plan.draft_cost(preparation.draft.spec, preparation.target.spec), plan.rows)
        identity = model_identity(preparation.draft, plan.device)
        stored.append(StoredRows(draft.model, identity, folder, pace, notes))
    return PromptCache(stored, notes, between)


def _seconds_per_token(cost: PassCost, rows: int) -> float | None:
    """What reading a prompt through a resident model takes; None if the speed of computing is not known."""
    return cost.seconds(rows, 1, rows).total / rows if cost.knows_computing else None
