"""Prints, below the verdict, what the modules of others were seen to do otherwise."""

import pytest

#: Language and words of each deviation that a test met and asserted.
DEVIATIONS = pytest.StashKey()


def pytest_configure(config):
    config.stash[DEVIATIONS] = set()


@pytest.fixture(scope="session")
def deviations(pytestconfig):
    return pytestconfig.stash[DEVIATIONS]


def pytest_terminal_summary(terminalreporter, config):
    met = sorted(config.stash[DEVIATIONS])
    if met:
        terminalreporter.section("what Apache's modules do otherwise, as asserted")
    for language, words in met:
        terminalreporter.line("%s: %s" % (language, words))
