"""One service for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace_lab.services.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service") / "data")
    yield service
    assert service.stop() == 0
