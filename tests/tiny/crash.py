"""In place of a decoder that a file makes crash."""

import os
import signal

os.kill(os.getpid(), signal.SIGSEGV)
