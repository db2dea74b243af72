"""Three source roots, one namespace package: no root may claim it, every portion is typed."""

from __future__ import annotations

from pathlib import Path

ROOTS = ("protos", "services", "trainer")


def test_no_root_claims_the_namespace(root: Path) -> None:
    # a stray __init__.py there would hide the other two roots
    assert [name for name in ROOTS if (root / name / "solon" / "__init__.py").exists()] == []


def test_every_portion_is_marked_as_typed(root: Path) -> None:
    portions = [path for name in ROOTS for path in (root / name / "solon").iterdir()]
    holding = [p for p in portions if p.is_dir() and any(p.rglob("*.py"))]
    assert len(holding) >= 10
    assert [p.name for p in holding if not (p / "py.typed").is_file()] == []


def test_every_folder_below_a_portion_is_a_regular_package(
    root: Path, python_files: list[Path]
) -> None:
    # the checkout itself may lie in a folder of any name, "solon" too
    portions = [root / name / "solon" for name in ROOTS]
    folders = {path.parent for path in python_files if set(portions) & set(path.parents)}
    assert len(folders) > len(portions)
    assert [f for f in folders - set(portions) if not (f / "__init__.py").is_file()] == []


def test_all_roots_are_one_package() -> None:
    import solon

    # PEP 420: a namespace package has no file of its own
    assert getattr(solon, "__file__", None) is None
    assert {Path(entry).parent.name for entry in solon.__path__} >= set(ROOTS)
