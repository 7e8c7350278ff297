"""README.md and docs/: what they point to exists, and what they list is all there is."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import click
import pytest

import forvalue_index
from forvalue_index import exceptions
from forvalue_index.cli import main as forvalue

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LARGEST_README = 10_000
# `console` and `python` are run by test_real_model.py; nothing runs the others.
LANGUAGES = {"console", "python", "sh", "text"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def load_script():
    loader = SourceFileLoader("docs_script", str(ROOT / "scripts" / "docs"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


docs = load_script()
COMMANDS = dict(docs.commands(forvalue))


def prose(page):
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def code(page):
    """What stands in blocks and in spans of code."""
    return [body for _, body in BLOCK.findall(page.read_text())] + re.findall(
        r"`([^`\n]+)`", prose(page)
    )


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith("https://")]


def command_lines(page, pattern):
    """Each call of a program in code: what it is, and its options."""
    for text in code(page):
        for line in text.splitlines():
            for match in re.finditer(pattern, line):
                yield match, re.findall(r"(?<![\w-])--?[a-z][\w-]*", line[match.end() :])


def called(words):
    """The command that these words call, or None where they call none."""
    group, command = forvalue, None
    for word in words:
        if not isinstance(group, click.Group) or word not in group.commands:
            break
        group = command = group.commands[word]
    return command


def options_of(command):
    return {name for parameter in command.params for name in parameter.opts}


def missing_anchor(page, target):
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page
    if not goal.exists():
        return "no such file"
    return "no such heading" if anchor and anchor not in anchors(goal) else None


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= LARGEST_README


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    broken = {target: missing_anchor(page, target) for target in links(page)}
    assert {target: why for target, why in broken.items() if why} == {}


@pytest.mark.parametrize("page", PAGES[1:], ids=NAMES[1:])
def test_the_readme_leads_to_every_page(page):
    assert str(page.relative_to(ROOT)) in {link.split("#")[0] for link in links(PAGES[0])}


@pytest.mark.parametrize("name", NAMES)
def test_blocks_have_a_language_that_says_whether_they_are_run(name):
    assert {language for language, _ in BLOCK.findall((ROOT / name).read_text())} <= LANGUAGES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    assert re.search(rf"^#+ {command}$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_that_pages_name_exist(name):
    pattern = r"(?<![\w/])forvalue (?P<words>[a-z][a-z -]*)"
    for match, options in command_lines(ROOT / name, pattern):
        command = called(match["words"].split())
        assert command is not None, match[0]
        assert set(options) <= options_of(command) | {"--help"}, match.string


@pytest.mark.parametrize("name", NAMES)
def test_scripts_and_options_that_pages_name_exist(name):
    for match, options in command_lines(ROOT / name, r"(?<![\w/])(scripts|tests)/[\w/.]*\w"):
        script = ROOT / match[0]
        assert script.exists(), match[0]
        if script.suffix == ".py":
            text = script.read_text()
            assert [option for option in options if f'"{option}"' not in text] == [], match.string


@pytest.mark.parametrize("name", NAMES)
def test_packages_that_pages_name_exist(name):
    page, package = ROOT / name, ROOT / "forvalue_index"
    named = re.findall(r"^\| ((?:`[\w/.]+` ?)+)\|", page.read_text(), re.MULTILINE)
    for path in re.findall(r"`([\w/.]+)`", " ".join(named)):
        if path.endswith("/") and not path.startswith("scripts/"):
            assert (package / path / "__init__.py").exists(), path


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_package_is_on_the_map(page):
    text = (ROOT / page).read_text()
    packages = [path.parent for path in (ROOT / "forvalue_index").glob("*/__init__.py")]
    assert [path.name for path in packages if f"| `{path.name}/` |" not in text] == []


def test_public_names_are_those_of_the_page():
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("## Public names")[2].partition("\n## ")[0].partition("|---|")[2]
    errors = {name for name, kind in vars(exceptions).items() if isinstance(kind, type)}
    assert set(re.findall(r"`(\w+)`", table)) == set(forvalue_index.__all__) - errors


def test_results_of_the_readme_stand_on_the_page_that_they_lead_to():
    rows = re.findall(r"^\| \[.*?\]\((.*?)#.*?\) \| (.*?) \|", PAGES[0].read_text(), re.MULTILINE)
    assert len(rows) >= 5
    for page, measured in rows:
        figures = set(re.findall(r"[+\d.,]*\d", measured))
        known = set(re.findall(r"[+\d.,]*\d", (ROOT / page).read_text()))
        assert {figure.lstrip(".0") for figure in figures} <= {k.lstrip(".0") for k in known}


class TestReference:
    """scripts/docs."""

    def test_the_page_is_what_the_commands_say(self):
        docs.main(["--check"])

    def test_a_difference_is_found_and_mended(self, tmp_path, monkeypatch):
        page = tmp_path / "commands.md"
        right = docs.PAGE.read_text()
        wrong = right.replace("`--rerank`", "`--again`")
        page.write_text(wrong)
        monkeypatch.setattr(docs, "PAGE", page)
        with pytest.raises(SystemExit, match="run scripts/docs"):
            docs.main(["--check"])
        assert page.read_text() == wrong
        docs.main([])
        assert page.read_text() == right

    def test_prose_stays(self):
        group = click.Group("all", commands={"go": click.Command("go", help="Go. Then stop.")})
        page = "# Go\n\n<!-- reference: {} -->\nold\n<!-- end -->\nprose\n"
        filled = docs.filled(page.format("go") + page.format("all"), dict(docs.commands(group)))
        assert "old" not in filled
        assert filled.count("prose") == 2
        assert "forvalue go [OPTIONS]" in filled
        assert "| [`forvalue go`](#go) | Go. |" in filled

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["all"], "has 0 places for 'go'"),
            (["all", "go", "go"], "has 2 places for 'go'"),
            (["all", "go", "stop"], "has a place for 'stop', which is no command"),
        ],
    )
    def test_places_and_commands_match(self, names, said):
        page = "".join(f"<!-- reference: {name} -->\n<!-- end -->\n" for name in names)
        with pytest.raises(SystemExit, match=said):
            docs.filled(page, {"go": click.Command("go")})

    @pytest.mark.parametrize(
        ("option", "row"),
        [
            (click.Option(["--all"], is_flag=True, help="Yes."), "| `--all` |  |  | Yes. |"),
            (click.Option(["--n"], type=int, default=3), "| `--n` | number | `3` |  |"),
            (
                click.Option(["--n"], type=click.IntRange(0), required=True),
                "| `--n` | number | required |  |",
            ),
            (
                click.Option(["-o", "--out"], type=click.Path(), help="A | b.  [default: here]"),
                r"| `-o`, `--out` | path | here | A \| b. |",
            ),
            (click.Option(["--x"], type=click.Choice(["a", "b"])), "| `--x` | `a`, `b` |  |  |"),
        ],
    )
    def test_an_option_is_a_row(self, option, row):
        assert row in docs.reference("go", click.Command("go", params=[option]))
