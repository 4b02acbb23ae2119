"""What this machine is, how fast it is, and what models it is predicted to run: `python -m offload_runtime.doctor`.

For bug reports, and for the first hour with a GPU. Needs no model and no GPU; the output names no user, host or path.
"""

from functools import partial

from offload_runtime.start import start

main = partial(start, "offload_runtime.doctor.command")
