"""Coverage-guided fuzzing of the path of a request: bytes, rules, domain objects, reply.

    pip install atheris
    python -m tests.fuzz.atheris_fuzz -runs=100000 [-max_len=4096] [FOLDER] [libFuzzer's flags]

By hand; atheris has wheels for Linux only. No sockets: the guard and the servicers are called with
bytes, over the scripted engine. The first byte of an input chooses the method, the others are the
body. It starts from the good requests of ``corpus``; FOLDER keeps what it found to be new. A
finding ends it with a traceback and the input in a file crash-*; give that file's name to send it
again.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import atheris
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

with atheris.instrument_imports(include=["solon"]):
    from tests.fuzz.handlers import all_handlers, new_loop
from tests.fuzz.replies import check
from tests.fuzz.strategies import ODD_NUMBERS, ODD_TEXTS

LOOP = new_loop()
TARGETS = list(all_handlers())
TABLE_EVERY = 10_000
CODES: Counter[tuple[str, str]] = Counter()


def send(data: bytes) -> None:
    """Send one input; raises what is wrong with the reply."""
    if not data:
        return
    handlers, method = TARGETS[data[0] % len(TARGETS)]
    reply = LOOP.run_until_complete(handlers.send(method, data[1:]))
    CODES[method.name, reply.code] += 1
    # libFuzzer ends the process without a word to Python: the last table is that of the end
    if CODES.total() % TABLE_EVERY == 0:
        show()
    check(reply, ours=True)


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Half of the time bytes are changed, else a field of the message that they are."""
    draw = random.Random(seed)
    if data and draw.random() < 0.5:
        _, method = TARGETS[data[0] % len(TARGETS)]
        message = GetMessageClass(method.descriptor.input_type)()
        try:
            message.ParseFromString(data[1:])
        except DecodeError:
            message.CopyFrom(draw.choice(method.requests))
        _shake(message, draw)
        if len(body := message.SerializeToString()) < most:
            return data[:1] + body
    mutated: bytes = atheris.Mutate(data, most)
    return mutated


def _shake(message: Any, draw: random.Random) -> None:
    """Change some field, however deep: clear it, set it to something odd, or double its items."""
    if not message.DESCRIPTOR.fields:
        return
    field = draw.choice(list(message.DESCRIPTOR.fields))
    value = getattr(message, field.name)
    if draw.random() < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated and draw.random() < 0.3:
        value.extend(list(value))
    elif field.message_type is not None:
        if field.is_repeated and (not value or draw.random() < 0.2):
            value.add()
        _shake(draw.choice(value) if field.is_repeated else value, draw)
    elif field.is_repeated:
        value.append(_odd(field.cpp_type, draw))
    else:
        setattr(message, field.name, _odd(field.cpp_type, draw))


def _odd(kind: int, draw: random.Random) -> Any:
    match kind:
        case FieldDescriptor.CPPTYPE_STRING:
            return draw.choice(ODD_TEXTS)
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return draw.choice(ODD_NUMBERS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        case _:
            return draw.choice([0, 1, 2, 3, 16, 17, 64, 2**31 - 1])


def show() -> None:
    """How often each method ended in which way."""
    rows = (f"{name:45} {code:20} {n:9,}" for (name, code), n in sorted(CODES.items()))
    print(f"{CODES.total():,} messages", *rows, sep="\n", flush=True)


def main() -> None:
    """Fuzz until the runs are over or something is found."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        for index, (_, method) in enumerate(TARGETS):
            for number, request in enumerate(method.requests):
                seed = Path(name) / f"{index}-{number}"
                seed.write_bytes(bytes([index]) + request.SerializeToString())
        atheris.Setup([*sys.argv, name], send, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
