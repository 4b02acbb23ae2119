"""The machine, the plan (placement and predicted cost) and the streaming that carries the plan out."""

__project__ = "sequoia-offload"  # tells `offload_runtime.start` that this is not another package of that name
