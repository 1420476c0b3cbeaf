import pytest
from example_paper import make_paper, write_paper


@pytest.fixture(scope="module")
def config():
    return make_paper()


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """To be read only."""
    return write_paper(config, tmp_path_factory.mktemp("paper"))
