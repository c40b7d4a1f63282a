"""What the documentation shows is true: python runs and prints what follows, YAML is valid, links lead on."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "solvers" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    printed: str | None  # a text block that follows after at most "It prints"

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(content))
    blocks = []
    for match, after in zip_longest(found, found[1:]):
        between = content[match.end() : after.start()].strip() if after else ""
        printed = after[2] if after and after[1] == "text" and between in ("", "It prints") else None
        blocks.append(Block(page, content.count("\n", 0, match.start()) + 1, match[1], match[2], printed))
    return blocks


BLOCKS = [block for page in PAGES for block in _blocks(page)]
HOW_TOS = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page not in HOW_TOS]
YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {"__name__": "example"})
    if block.printed is not None:
        assert printed.getvalue() == block.printed


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_blocks_are_valid_files(block, tmp_path):
    from edgeopt.profiles import validate

    file = tmp_path / "block.yaml"
    file.write_text(block.text, encoding="utf-8")
    validate(file)


def test_the_tutorial_shows_what_really_happens(tmp_path, monkeypatch, capsys):
    from edgeopt.cli import main

    page = ROOT / "docs" / "tutorial.md"
    flat = next(block.text for block in YAML if block.page == page)
    wrong = flat.replace("memory: 4 GiB", "memory: 4").replace("llama-3.2-3b", "lama-3.2-3b")
    (tmp_path / "flat.yaml").write_text(flat, encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(wrong, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def comparable(text):
        """Return the lines that say something; figures are masked, since the library's devices may be measured anew."""
        telling = [
            line for line in text.splitlines() if re.match(r"error|wrong|try|holiday|optimal|note: hosts|plan", line)
        ]
        return [re.sub(r"\d+(\.\d+)?( [mµ]?s)?\b(?! %)", "#", line).rstrip() for line in telling]

    shown = [block.text for block in BLOCKS if block.page == page and block.text.startswith("$ edgeopt ")]
    assert len(shown) == 2
    for text in shown:
        command, _, expected = text.partition("\n")
        main(shlex.split(command)[2:])
        printed = capsys.readouterr()
        assert comparable(printed.out + printed.err) == comparable(expected)


def test_the_page_on_questions_shows_what_really_happens(tmp_path, monkeypatch, capsys):
    from edgeopt.cli import main

    page = ROOT / "docs" / "why-this-plan.md"
    problem = (ROOT / "profiles" / "problems" / "home-cluster.yaml").read_text(encoding="utf-8")
    (tmp_path / "more.yaml").write_text(problem.replace("10 GiB", "14 GiB"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def masked(text):
        """Return lines without figures, which the library's devices may change by being measured anew."""
        return [
            re.sub(r"[-+]?\d+(\.\d+)?(e[+-]?\d+)?( [mµ]?s)?\b(?! [%GM])", "#", line).strip()
            for line in text.splitlines()
        ]

    shown = [block.text for block in BLOCKS if block.page == page and block.text.startswith("$ edgeopt ")]
    assert len(shown) == 8
    for text in shown:
        command, _, expected = text.partition("\n")
        assert main(shlex.split(command)[2:]) == 0
        printed = masked(capsys.readouterr().out)
        assert [line for line in masked(expected) if line not in printed] == [], command


def _masked(text):
    """Return lines without figures, which the library's devices may change by being measured anew."""
    return [re.sub(r"[-+]?\d+(\.\d+)?( [mµ]?s)?\b(?! %)", "#", line).strip() for line in text.splitlines()]


@functools.cache
def _follow(page, folder):
    """Do what a how-to says, in order and in ``folder``; return that folder."""
    from edgeopt.cli import main

    content = page.read_text(encoding="utf-8")
    if before := re.search(r"goes on from \[[^]]*\]\(([^)]*)\)", content):
        folder = _follow(page.parent / before[1], folder)
    names = {"__name__": "example"}
    with contextlib.chdir(folder):
        for block in _blocks(page):
            printed = io.StringIO()
            if block.language == "yaml":
                lines = content.splitlines()[: block.line - 1]
                name = re.search(r"`([\w.-]+\.yaml)`:$", next(line for line in reversed(lines) if line))
                assert name, f"{block}: the line before it does not name its file"
                Path(name[1]).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                with contextlib.redirect_stdout(printed):
                    exec(compile(block.text, str(block), "exec"), names)
                assert block.printed in (None, printed.getvalue()), block
            elif block.language == "console":
                for command, expected in re.findall(r"^\$ edgeopt (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                    with contextlib.redirect_stdout(printed):
                        code = main(shlex.split(command))
                    shown = _masked(printed.getvalue())
                    assert code == 0, f"{block}: {command}"
                    assert [line for line in _masked(expected) if line not in shown] == [], f"{block}: {command}"
    return folder


def _how_to(page):
    runs = re.search(r"^\$ edgeopt (execute|profile link)|goes on from", page.read_text(encoding="utf-8"), re.MULTILINE)
    marks = [pytest.mark.torch, pytest.mark.processes] if runs else []
    return pytest.param(page, id=page.stem, marks=marks)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder for each how-to, the same whenever it is asked for."""
    return functools.cache(lambda page: tmp_path_factory.mktemp(page.stem))


@pytest.mark.parametrize("page", [_how_to(page) for page in HOW_TOS])
def test_how_tos_can_be_followed(page, folders):
    text = page.read_text(encoding="utf-8")
    if "edgeopt report" in text:
        pytest.importorskip("jinja2")
    before = re.search(r"goes on from \[[^]]*\]\(([^)]*)\)", text)
    assert _follow(page, folders(page.parent / before[1] if before else page)).is_dir()


def test_there_are_ten_how_tos():
    assert len(HOW_TOS) >= 10
    assert all("```console" in (text := page.read_text(encoding="utf-8")) or "```python" in text for page in HOW_TOS)


def test_the_first_five_minutes_are_as_shown(tmp_path, monkeypatch, capsys):
    """Typed again, on a terminal where the page answers questions; figures are masked as above."""
    from edgeopt.cli import main
    from tests.edgeopt.terminal import converse

    page = ROOT / "docs" / "first-five-minutes.md"
    monkeypatch.chdir(tmp_path)

    def masked(text):
        lines = (re.sub(r"[-+]?\d+(\.\d+)?( [mµ]?s| [GMk]?B| %)?", "#", line) for line in text.splitlines())
        return [re.sub(r"[\s│]+", " ", line).strip() for line in lines]

    shown = [block.text for block in BLOCKS if block.page == page and block.text.startswith("$ edgeopt ")]
    assert len(shown) == 7
    for text in shown:
        command, _, rest = text.partition("\n")
        words = shlex.split(command)[2:]
        asked = re.findall(r"^(\? .*[?)])(?: ([^()\n]+))?$", rest, re.MULTILINE)
        expected = [line for line in rest.splitlines() if not line.startswith("? ")]
        if asked:
            code, seen = converse(words, [(question, f"{answer}\r") for question, answer in asked], tmp_path)
            assert len(asked) == 9
        else:
            code, seen = main(words), capsys.readouterr().out
        assert code == 0, seen
        printed = masked(seen)
        assert [line for line in masked("\n".join(expected)) if line not in printed] == [], command


def test_there_is_something_to_test():
    pages = {block.page.name for block in PYTHON}
    assert {"README.md", "embedding.md"} <= pages
    assert {block.page.name for block in YAML} >= {"README.md", "tutorial.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_readme_names_every_verb_and_target():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in (
        "make demo",
        "make test",
        "edgeopt solve",
        "edgeopt verify",
        "edgeopt execute",
        "2602.13206",
        "2401.01666",
    ):
        assert words in readme


def test_cli_page_lists_every_option():
    import typer.main

    from edgeopt.cli import app

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    def options(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from options(child, [*path, name])
        if not hasattr(command, "commands"):
            usage = [line for line in page.splitlines() if line.startswith(" ".join(path) + " ")]
            assert usage, f"{' '.join(path)} is not on the page"
            for parameter in command.params:
                if parameter.name != "help" and parameter.param_type_name == "option":
                    yield " ".join(path), [*parameter.opts, *parameter.secondary_opts], "\n".join(usage)

    missing = [
        (verb, names) for verb, names, usage in options(typer.main.get_command(app), ["edgeopt"])
        if not any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", usage) for name in names)
    ]  # fmt: skip
    assert missing == []
