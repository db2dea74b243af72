"""Constitutions from other people's files: the JSON shapes that came with the paper, plain lists.

Four shapes of JSON, those of the files published with Bai et al. 2022 (arXiv 2212.08073), and text:

- ``{"name": {"prompt": [request, ...], "edit_request": request}}``: pairs for the critic (3.1);
- ``["instruction", ...]``: comparison instructions for the judge (4.1);
- ``["Human: ... CritiqueRequest: ... Revision: ...", ...]``: exemplars of critique and revision;
- ``[{"prompt": transcript, "corrects": [text], "incorrects": [text]}, ...]``: of comparisons;
- ``.txt``: a comparison instruction a line.

The labels that those prompts wear ("CritiqueRequest: ... Critique:", "... Options:") are taken off,
since Solon's prompts have their own. Knows nothing of YAML, prompts or models; ships no texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from solon.constitution.errors import ConstitutionError, Problem
from solon.constitution.loader import from_dict, read_text
from solon.constitution.types import Constitution

_NO_LICENCE = "the texts published with Bai et al. 2022 (arXiv 2212.08073) carry no licence"
_LABELS = r"Human|Assistant|Critique ?Request|Critique|Revision ?Request|Revision"
_LABEL = re.compile(rf"^({_LABELS}):", re.IGNORECASE | re.MULTILINE)
_OPENING = re.compile(r"^\s*(critique|revision) ?request\s*:", re.IGNORECASE)
_CLOSING = re.compile(r"(?:^|\n)\s*(critique|revision)\s*:\s*$|\boptions\s*:\s*$", re.IGNORECASE)
_ROLES = {"human": "user", "assistant": "assistant"}
_SHAPES = (
    'a mapping of names to {"prompt": [...], "edit_request": ...}, a list of texts, or a list of '
    '{"prompt", "corrects", "incorrects"}'
)

Entry = dict[str, Any]


def import_files(
    files: Sequence[Path], *, name: str, author: str | None = None, licence: str | None = None
) -> Constitution:
    """One constitution from one or more files of others.

    Pairs come first, then comparison instructions; each keeps the file that it is from. An
    exemplar of critique shows the requests of a principle: those in its transcript, which become a
    principle of their own unless another file has them. Exemplars of comparisons get the comparison
    instructions in turn, as the paper draws one for each (4.1), with the better response now first,
    now second.

    Args:
        files: ``.json`` or ``.txt``, UTF-8.
        name: Of the constitution.
        author: Who wrote the texts, if known.
        licence: Under which they may be used, if known.

    Raises:
        ConstitutionError: A file cannot be read or has another shape, or the whole breaks a rule.
    """
    importer = _Importer()
    for path in files:
        importer.read(path)
    names = ", ".join(path.name for path in files)
    source = f"Imported from {names}" + ("" if licence else f"; {_NO_LICENCE}")
    provenance = {"author": author, "source": source, "license": licence or "not stated"}
    data = {
        "name": name,
        "version": "1",
        "provenance": {key: value for key, value in provenance.items() if value},
        **importer.result(),
    }
    return from_dict(data, source=names)


class _Importer:
    """What has been read so far."""

    def __init__(self) -> None:
        self._pairs: dict[str, Entry] = {}
        self._comparisons: dict[str, Entry] = {}
        self._critiques: list[tuple[str, Entry]] = []
        self._choices: list[Entry] = []

    def read(self, path: Path) -> None:
        content = _content(path)
        if isinstance(content, dict) and content:
            self._each(path, content.items(), self._add_pair)
        elif isinstance(content, list) and content and _are_texts(content):
            is_exemplar = any(_LABEL.search(text) for text in content)
            add = self._add_critique if is_exemplar else self._add_comparison
            self._each(path, enumerate(content), add)
        elif isinstance(content, list) and content and all(isinstance(c, dict) for c in content):
            self._each(path, enumerate(content), self._add_choice)
        else:
            raise ConstitutionError(str(path), [Problem(text=f"expected {_SHAPES}")])

    def _each(self, path: Path, entries: Any, add: Callable[[Path, str, Any], None]) -> None:
        problems = []
        for key, entry in entries:
            shown = f"[{key}]" if isinstance(key, int) else str(key)
            try:
                add(path, shown, entry)
            except ValueError as error:
                problems.append(Problem(key=shown, text=str(error)))
        if problems:
            raise ConstitutionError(str(path), problems)

    def result(self) -> Entry:
        """Principles and exemplars as a file has them.

        Raises:
            ConstitutionError: There are exemplars of comparisons, and nothing to compare by.
        """
        exemplars = {
            "critiques": [
                exemplar | {"principle": self._principle_of(exemplar["principle"], source)}
                for source, exemplar in self._critiques
            ],
            "comparisons": [self._placed(i, choice) for i, choice in enumerate(self._choices)],
        }
        found: Entry = {"principles": [*self._pairs.values(), *self._comparisons.values()]}
        if any(exemplars.values()):
            found["exemplars"] = {key: shown for key, shown in exemplars.items() if shown}
        return found

    def _add_pair(self, path: Path, key: str, entry: Any) -> None:
        match entry:
            case {"prompt": str(only), "edit_request": str(edit)}:
                asked = [only]
            case {"prompt": [str(), *_] as asked, "edit_request": str(edit)} if _are_texts(asked):
                pass
            case _:
                raise ValueError(
                    f'expected {{"prompt": [text, ...], "edit_request": text}}, got {entry!r:.80}'
                )
        for number, text in enumerate(asked, 1):
            wanted = key if len(asked) == 1 else f"{key}-{number}"
            name = self._free(_slug(wanted))
            self._pairs[name] = {
                "id": name,
                "critique_request": _bare(text),
                "revision_request": _bare(edit),
                "provenance": f"{key} in {path.name}",
            }

    def _add_comparison(self, path: Path, key: str, text: str) -> None:
        name = self._free(f"compare-{len(self._comparisons) + 1}")
        self._comparisons[name] = {
            "id": name,
            "comparison_instruction": _bare(text),
            "provenance": f"{key} in {path.name}",
        }

    def _add_critique(self, path: Path, key: str, text: str) -> None:
        turns = _turns(text)
        labels = [label for label, _ in turns]
        ending = ["critiquerequest", "critique", "revisionrequest", "revision"]
        if labels[-4:] != ending or labels[-5:-4] != ["assistant"] or len(labels) < 6:
            raise ValueError(
                "expected a transcript that ends with Assistant, CritiqueRequest, Critique, "
                f"RevisionRequest and Revision, got {', '.join(labels) or 'none of them'}"
            )
        response, asked, critique, edit, revision = (said for _, said in turns[-5:])
        exemplar = {
            "conversation": _messages(turns[:-5]),
            "response": response,
            "principle": (asked, edit),
            "critique": critique,
            "revision": revision,
        }
        self._critiques.append((f"{key} in {path.name}", exemplar))

    def _add_choice(self, path: Path, key: str, entry: Mapping[str, Any]) -> None:
        match entry:
            case {
                "prompt": str(asked),
                "corrects": [str(better), *_],
                "incorrects": [str(worse), *_],
            }:
                messages = _messages([turn for turn in _turns(asked) if turn[1]])
                self._choices.append({"conversation": messages, "better": better, "worse": worse})
            case _:
                raise ValueError(
                    'expected {"prompt": text, "corrects": [text], "incorrects": [text]}, got the '
                    f"keys {sorted(entry)}; chains of thought are no exemplars here: leave that "
                    "file out"
                )

    def _principle_of(self, requests: tuple[str, str], source: str) -> str:
        """The principle with these requests, which is added if there is none."""
        for name, pair in self._pairs.items():
            if (pair["critique_request"], pair["revision_request"]) == requests:
                return name
        name = self._free("exemplar")
        asked, edit = requests
        self._pairs[name] = {
            "id": name,
            "critique_request": asked,
            "revision_request": edit,
            "provenance": f"The requests of the exemplar {source}",
        }
        return name

    def _free(self, name: str) -> str:
        """The name, or the first of name-2, name-3, ... that no principle has."""
        taken = self._pairs.keys() | self._comparisons.keys()
        candidates = chain([name], (f"{name}-{number}" for number in count(2)))
        return next(one for one in candidates if one not in taken)

    def _placed(self, index: int, choice: Entry) -> Entry:
        names = list(self._comparisons)
        if not names:
            problem = "exemplars of comparisons need comparison instructions: import those as well"
            raise ConstitutionError("constitution import", [Problem(text=problem)])
        responses = (choice["better"], choice["worse"])
        first, second = responses if index % 2 == 0 else responses[::-1]
        return {
            "conversation": choice["conversation"],
            "response_a": first,
            "response_b": second,
            "principle": names[index % len(names)],
            "answer": "AB"[index % 2],
        }


def _content(path: Path) -> Any:
    text = read_text(path)
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        problem = Problem(line=error.lineno, text=f"expected JSON: {error.msg}")
        raise ConstitutionError(str(path), [problem]) from error
    except ValueError as error:
        raise ConstitutionError(str(path), [Problem(text=str(error))]) from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"expected each name once, {key!r} is there twice: rename one")
        found[key] = value
    return found


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _bare(text: str) -> str:
    """A request without the labels that its prompt had around it."""
    return _CLOSING.sub("", _OPENING.sub("", text)).strip()


def _turns(text: str) -> list[tuple[str, str]]:
    """(label in lower case without spaces, what was said), turn by turn."""
    parts = _LABEL.split(text)
    labels = (label.lower().replace(" ", "") for label in parts[1::2])
    turns = [(label, said.strip()) for label, said in zip(labels, parts[2::2], strict=True)]
    # the published transcripts end with the label of a turn that nobody has taken yet
    return turns[:-1] if turns and not turns[-1][1] else turns


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    if not turns or any(label not in _ROLES for label, _ in turns):
        raise ValueError("expected a conversation of Human and Assistant before the response")
    return [{"role": _ROLES[label], "content": said} for label, said in turns]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "principle"
