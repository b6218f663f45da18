"""What the tests check, one line each. The first that is wrong ends the test."""

import sys

passed = 0


def check(what, got, expected):
    global passed
    if got != expected:
        sys.exit(f"FAILED  {what}\n  expected {expected!r}\n  got      {got!r}")
    passed += 1
    print(f"ok      {what}", flush=True)
