"""What lives where, what moves when, and what it costs: the machine, the plan and the ring that carries it out."""

__project__ = "sequoia-offload"  # by this `offload_runtime.start` knows it from others of its name
