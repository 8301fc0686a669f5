"""For all tests: what they start can be interrupted, also where they run in the background of a shell."""

import signal


def pytest_configure() -> None:
    # such a shell has it ignored, and processes inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
