"""`python -m offload_runtime.chat`."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` runs, Ctrl-C ends this without a traceback
    from offload_runtime.chat.command import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())
