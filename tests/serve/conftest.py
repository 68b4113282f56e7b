import pytest

from tests.serve import serving


@pytest.fixture(scope="module")
def policy(golden):
    return serving.load(golden / "tiny")


@pytest.fixture(scope="module")
def running(policy):
    with serving.served(policy) as made:
        yield made
