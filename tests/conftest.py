"""What all tests rely on."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and children inherit it: no test of an interruption could pass.
    signal.signal(signal.SIGINT, signal.default_int_handler)
