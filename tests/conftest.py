"""For all tests: what they start can be interrupted, and Ray asks for a token in every one of them."""

import os
import secrets
import signal


def pytest_configure() -> None:
    # the shell that runs tests in its background has it ignored, and processes inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # a process of Ray's keeps to the mode that it met first, also where another test sets another one
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
