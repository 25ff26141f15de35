"""Every link in the documentation leads somewhere, and every file and test that it mentions exists."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Folders that a checkout may have and the repository has not.
LOCAL = {".git", ".venv", ".state", "build", "node_modules"}
ELSEWHERE = {"after-hours-photos/", "share/after-hours/"}  # of the storage, and of an installed package
FILES = {
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*")
    if path.is_file() and not LOCAL & set(path.relative_to(ROOT).parts) and "__pycache__" not in path.parts
}
FOLDERS = {parent.as_posix() for name in FILES for parent in Path(name).parents} - {"."}
TESTS = "\n".join((ROOT / name).read_text() for name in FILES if re.match(r"tests/.*\.py$", name))
SUFFIXES = r"\.(?:py|md|sql|json|ya?ml|cfg|toml|txt|sh|acl|svg|js|lua)"
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of one."""
    dead = []
    # An image may be the text of a link, so links are looked for inside links as well.
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    for target in [*LINK.findall(text), *re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


def unknown_names(page: Path) -> list[str]:
    """Return the files, folders and tests that a page mentions as code and that are not in the repository."""
    unknown = []
    for code in CODE.findall(FENCE.sub("", page.read_text())):
        file, _, test = code.partition("::")
        if re.fullmatch(rf"[\w./@-]+{SUFFIXES}", file) and not file.startswith("/"):
            known = any(name == file or name.endswith(f"/{file}") for name in FILES)
        elif re.fullmatch(r"[a-z][\w-]*(?:/[\w-]+)*/", file):
            known = any(name == file[:-1] or name.endswith(f"/{file[:-1]}") for name in FOLDERS)
        else:
            continue
        if (code not in ELSEWHERE and not known) or (test and f"def {test}(" not in TESTS):
            unknown.append(code)
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_names_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []
    assert unknown_names(page) == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, `code` and all\n[good](#a-heading-code-and-all) [bad](#no) [gone](gone.md) [web](https://a.example)\n"
        "[![image](gone.svg)](page.md) `gone.py` `sessions/service.py` `sessions/gone.py` `gone/` `stores/`\n"
        "`tests/docs/test_links.py::test_what_is_missing_is_found` `tests/docs/test_links.py::test_gone`\n"
        "```\n[in a listing](gone.md) `gone.py`\n```\n"
    )
    assert set(dead_links(page)) == {"#no", "gone.md", "gone.svg"}
    assert unknown_names(page) == ["gone.py", "sessions/gone.py", "gone/", "tests/docs/test_links.py::test_gone"]
