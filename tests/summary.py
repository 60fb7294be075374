"""Counts the tests of a run from nextest's JUnit files, for `tests/run`.

Usage: summary.py REPORT.xml...           Prints one line per group and, last, `N passed, N failed`.
       summary.py --names REPORT.xml...   Prints `PASS name` or `FAIL name` for every test, for the fault suite, and nothing else.
Exit code: 0 when at least one test ran and none failed, 1 when one failed, 3 when none ran.
A test belongs to a group by its name or its binary's name; the same names select the stages in `tests/run`.
"""

import re
import sys
import xml.etree.ElementTree as ET

GROUPS = [
    ("on SQLite", lambda binary, name: "on_sqlite" in name),
    ("on PostgreSQL", lambda binary, name: "on_postgres" in name),
    ("on the real engine", lambda binary, name: "engine" in binary or "on_engine" in name),
    ("Python clients", lambda binary, name: "python" in binary),
    ("architecture", lambda binary, name: "architecture" in binary),
]


def results(paths):
    """Every test once, as {(binary, name): passed}; a test that ran in two stages counts as failed if it failed once."""
    seen = {}
    for path in paths:
        for suite in ET.parse(path).getroot().iter("testsuite"):
            # nextest calls a suite `package::binary`, or just `package` for the tests inside a library.
            binary = re.sub(r"^[^:]*(::)?", "", suite.get("name", ""))
            for case in suite.iter("testcase"):
                if case.find("skipped") is not None:
                    continue
                passed = case.find("failure") is None and case.find("error") is None
                key = (suite.get("name"), binary, case.get("name", ""))
                seen[key] = seen.get(key, True) and passed
    return seen


def line(label, outcomes):
    passed = sum(outcomes)
    return f"  {label:<20} {passed:>5} passed  {len(outcomes) - passed:>5} failed"


def main():
    if sys.argv[1:2] == ["--names"]:
        for (_, _, name), passed in sorted(results(sys.argv[2:]).items()):
            print("PASS" if passed else "FAIL", name)
        return
    tests = results(sys.argv[1:])
    grouped = set()
    for label, belongs in GROUPS:
        members = {key for key in tests if belongs(key[1], key[2])}
        grouped |= members
        print(line(label, [tests[key] for key in members]))
    print(line("everything else", [passed for key, passed in tests.items() if key not in grouped]))
    for suite, _, name in sorted(key for key, passed in tests.items() if not passed):
        print(f"  FAILED: {suite} {name}")
    failed = sum(not passed for passed in tests.values())
    if not tests:
        print("  no test ran at all: that is a failure, not a success")
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(3 if not tests else 1 if failed else 0)


main()
