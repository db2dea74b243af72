"""New weights for a vLLM that runs: in the place of the old ones, or an adapter beside them.

What is to be loaded is read and checked here first, on the CPU: vLLM loads whatever it is given.
Knows nothing of requests: nothing must run meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from solon.engine.adapters import check_adapter
from solon.engine.base import BackendUnavailable, EngineError, EngineFailed, WeightsNotLoaded
from solon.engine.pretrained import from_pretrained
from solon.engine.vllm.backend import Backend
from solon.engine.weights import Base, Served, fingerprint_of, found, read

Stamps = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Weights that were checked, on disk."""

    folder: Path
    files: ExitStack
    """Removes what was fetched or made for them."""
    base: Base | None = None
    """What the next adapter is merged into; None: this is an adapter to run beside the weights."""


class Weights:
    """The weights of one vLLM."""

    def __init__(self, model: str, stamps: Stamps, dtype: str, *, beside: bool) -> None:
        """Of a vLLM that has just been started.

        Args:
            model: What it was started with.
            stamps: Of its files, from before they were read.
            dtype: Of its numbers, as torch calls it.
            beside: Whether adapters run beside the weights.
        """
        self._model = model
        self._beside = beside
        self._stamps = stamps
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._served = Served.of(_without_memory(model, self._dtype), self._fingerprint)
        self._base = Base.of(model)
        self._in_use = model
        """Where the full weights that run can be read again."""
        self._kept = ExitStack()
        self._adapters = 0
        self.adapter: Any = None
        """A LoRARequest that requests must be made with."""

    def prepare(self, path: str, abandoned: threading.Event) -> Prepared:
        """Read weights and check them; takes long. What it returns must be closed.

        Raises:
            WeightsNotLoaded, InvalidInput: They cannot be used.
        """
        with ExitStack() as stack:
            there = stack.enter_context(found(path, abandoned))
            if there.is_adapter and self._beside:
                with there.said_of():
                    check_adapter(there.folder, _without_memory(self._model, self._dtype))
                return Prepared(there.folder, stack.pop_all())
            new = read(there, base=self._base, served=self._served, abandoned=abandoned)
            folder = there.folder
            if there.is_adapter:
                folder = Path(stack.enter_context(_temporary()))
                new.model.save_pretrained(str(folder))
            return Prepared(folder, stack.pop_all(), new.base)

    async def load(self, prepared: Prepared, backend: Backend) -> None:
        """Take them into use.

        Raises:
            WeightsNotLoaded: vLLM refused them; the old ones are in use.
            EngineFailed: It refused the old ones too: what it has now is not known.
            BackendUnavailable: It died.
        """
        if prepared.base is None:
            await self._load_beside(prepared, backend)
        else:
            await self._load_in_place(prepared, prepared.base, backend)

    async def _load_beside(self, prepared: Prepared, backend: Backend) -> None:
        from vllm.lora.request import LoRARequest  # noqa: PLC0415 - heavy

        self._adapters += 1
        request = LoRARequest(str(self._adapters), self._adapters, str(prepared.folder))
        try:
            await backend.answer(backend.llm.add_lora(request))
        except EngineFailed as error:
            raise WeightsNotLoaded(f"vLLM cannot run this adapter: {error}") from error
        await self._drop_adapter(backend)
        self.adapter = request

    async def _load_in_place(self, prepared: Prepared, base: Base, backend: Backend) -> None:
        try:
            await _reload(backend, str(prepared.folder))
        except BackendUnavailable:
            raise
        except EngineError as error:
            try:
                await _reload(backend, self._in_use)
            except EngineError as again:
                raise EngineFailed(
                    f"new weights could not be loaded ({error}), and the old ones, from "
                    f"{self._in_use!r}, neither ({again}): start the service again"
                ) from again
            raise WeightsNotLoaded(f"vLLM cannot load these weights: {error}") from error
        await self._drop_adapter(backend)
        self._in_use, self._base = str(prepared.folder), base
        # a folder for a while is kept for as long as its weights are in use
        self._kept.close()
        self._kept = prepared.files.pop_all()

    async def _drop_adapter(self, backend: Backend) -> None:
        if self.adapter is not None:
            await backend.answer(backend.llm.remove_lora(self.adapter.lora_int_id))
            self.adapter = None

    def close(self) -> None:
        """Remove what was fetched."""
        self._kept.close()

    def _fingerprint(self) -> Mapping[str, int]:
        """Of the weights that vLLM was started with, read again."""
        model, _ = from_pretrained(self._model, self._dtype, safetensors_only=False)
        fingerprint = fingerprint_of(model.state_dict())
        if stamps_of(self._model) != self._stamps:
            raise WeightsNotLoaded(
                f"the full weights at {self._model!r} have changed since they were loaded: load "
                "full weights first, then the adapter"
            )
        return fingerprint


async def _reload(backend: Backend, path: str) -> None:
    await backend.workers("reload_weights", weights_path=path)
    await backend.workers("solon_renew_tied")
    # what it remembers of prompts was computed with other weights
    await backend.answer(backend.llm.reset_prefix_cache())


def _without_memory(model: str, dtype: torch.dtype) -> Any:
    """A model with names, shapes and types, but no numbers."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


@contextmanager
def _temporary() -> Iterator[str]:
    try:
        temporary = TemporaryDirectory(prefix="solon-merged-")
    except OSError as error:
        raise WeightsNotLoaded(
            f"there is nowhere to write the merged weights to: {error}: point TMPDIR to a "
            "directory that the server may write"
        ) from error
    with temporary as folder:
        yield folder


def stamps_of(model: str) -> Stamps:
    """Size, time of change in ns and inode of each file; nothing of what is on the hub."""
    if not os.path.isdir(model):
        return {}
    return {
        entry.name: (about.st_size, about.st_mtime_ns, about.st_ino)
        for entry in os.scandir(model)
        if entry.is_file() and (about := entry.stat())
    }
