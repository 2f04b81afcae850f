"""Independent subnet training on MPI clusters (Yuan et al., arXiv 1910.02120)."""

import signal
import sys

__version__ = "0.1.0"

# While `python -m ist_hpc...` loads its modules nothing needs an orderly end: a Ctrl-C ends the
# process, without a traceback of some import. `ending.run` makes it an exception again.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
