"""Fixtures of the reporting tests."""

import pytest
from example_judged import make_judged, write_judged
from example_run import make_raw, write_results

from vrm import config as configuration


@pytest.fixture(scope="session")
def config():
    return configuration.parse(make_raw())


@pytest.fixture(scope="session")
def results(config, tmp_path_factory):
    return write_results(config, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def judged_config():
    return make_judged()


@pytest.fixture(scope="session")
def judged_results(judged_config, tmp_path_factory):
    """The judged benchmarks' files, to be read only."""
    return write_judged(judged_config, tmp_path_factory.mktemp("judged"))
