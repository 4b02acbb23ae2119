"""What lives where, what moves when, and what it costs: the machine, the plan and the ring that carries it out."""
