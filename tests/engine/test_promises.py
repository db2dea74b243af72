"""The transformers engine keeps the promises of ``promises``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from solon.engine import Engine
from solon.sandbox import model_path
from tests.engine.conftest import running
from tests.engine.promises import *  # noqa: F403

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One for all of them."""
    async with running(model_path(), max_batch=8, queue_capacity=16) as started:
        yield started
