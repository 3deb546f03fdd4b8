"""The pages: their programs run, and the API reference has every public name."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import shutil
import textwrap
import tomllib
from pathlib import Path

import pytest

import tdmer

DOCS = Path(__file__).parents[1] / "docs"
README = "../README.md"
ALONE = (README, "losses.md")  # whose programs are pasted one by one
NEEDS = {"trainer.md": "accelerate", "recordings.md": "av"}
EXPORT = "export.md"  # run by test_export.py, which looks at what it makes
PAGES = [README, *sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*.md"))]

FENCE = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"^\.\. module:: (\S+)$", re.MULTILINE)
ENTRY = re.compile(r"^\.\. auto(?:class|function):: (\S+)$", re.MULTILINE)


def blocks(page):
    """Return language, source and first line of every block of a page, numbered from 0."""
    text = (DOCS / page).read_text()
    return [
        (match[1], match[2], text.count("\n", 0, match.start(2))) for match in FENCE.finditer(text)
    ]


def public_names():
    """Return module and name of all that a module lists or, without a list, defines."""
    found = [("tdmer", name) for name in tdmer.__all__]
    for room in pkgutil.iter_modules(tdmer.__path__, "tdmer."):
        if room.name.startswith("tdmer._"):
            continue
        module = importlib.import_module(room.name)
        own = [
            name
            for name, thing in vars(module).items()
            if getattr(thing, "__module__", None) == room.name
            and not name.startswith("_")
            and (inspect.isclass(thing) or inspect.isfunction(thing))
        ]
        found += [(room.name, name) for name in getattr(module, "__all__", own)]
    return found


@pytest.fixture(scope="module")
def reference():
    """Return the objects that the API reference documents."""
    entries = []
    for page in (DOCS / "api").glob("*.md"):
        text = page.read_text()
        for module in MODULE.findall(text):
            entries += [getattr(importlib.import_module(module), n) for n in ENTRY.findall(text)]
    return entries


@pytest.mark.parametrize(("module", "name"), public_names())
def test_public_name_is_in_the_reference_with_an_example(module, name, reference):
    thing = getattr(importlib.import_module(module), name)
    assert reference.count(thing) == 1
    assert inspect.getdoc(thing)
    if not hasattr(thing, "_fields"):  # a named tuple only carries results
        assert doctest.DocTestParser().get_examples(thing.__doc__)


def fields(thing):
    """Return what the source says of every field of a named tuple or dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0].body
    said = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and not statement.target.id.startswith("_"):
            known = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            said[statement.target.id] = after.value.value if known else ""
    return said


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (module, name)
        for module, name in public_names()
        for thing in [getattr(importlib.import_module(module), name)]
        if hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__")
    ],
)
def test_every_field_is_in_the_reference(module, name):
    thing = getattr(importlib.import_module(module), name)
    listed = re.findall(r"^ {4}(\w+): ", inspect.getdoc(thing), re.MULTILINE)
    for field, said in fields(thing).items():
        assert said or field in listed, f"nothing says what {name}.{field} is"
        # Napoleon takes what stands before a colon for a type.
        assert not re.match(r"[^`\n]*: ", said)
    assert '"members": True' in (DOCS / "conf.py").read_text()


def run(page, parts, namespace):
    """Run blocks of a page, and return the names they leave."""
    for language, source, line in parts:
        if (page in ALONE and language == "python") or not namespace:
            namespace = {"__name__": "page"}
        if language == "python":
            # The empty lines make a traceback name the line of the page.
            exec(compile("\n" * line + source, DOCS / page, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(source, namespace, page, str(DOCS / page), line)
        runner = doctest.DocTestRunner(verbose=False)
        report = []
        runner.run(test, out=report.append, clear_globs=False)
        assert not runner.failures, "".join(report)
        namespace = test.globs
    return namespace


# A loader of the Trainer asks for pinned memory even where there is no accelerator.
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page != EXPORT])
def test_programs_of_a_page_run(page, tmp_path, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    namespace = run(page, blocks(page), {})
    if page == "trainer.md":
        errors = [
            row["eval_mae"] for row in namespace["trainer"].state.log_history if "eval_mae" in row
        ]
        assert errors[-1] < errors[0]


def test_release_has_absolute_links_and_names_its_repository(tmp_path, monkeypatch):
    root = DOCS.parent
    for name in ("README.md", "pyproject.toml", "CHANGELOG.md"):
        shutil.copy(root / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    release = runpy.run_path(str(root / ".ci" / "absolute"))["main"]
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    with Path("CHANGELOG.md").open("a") as changes:
        changes.write(f"\n## [{project['version']}]\n")
    release("https://host/owner/name", f"v{project['version']}")

    links = re.findall(r"\]\(([^)]*)\)", Path("README.md").read_text())
    ours = [re.fullmatch(r"https://host/owner/name/(raw|blob)/v[^/]+/(.+)", link) for link in links]
    assert all(link.startswith("https://") for link in links)
    assert all((root / match[2].partition("#")[0]).exists() for match in ours if match)
    assert {match[1] for match in ours if match} == {"raw", "blob"}
    assert tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]
    assert f"\nversion: {project['version']}\n" in (root / "CITATION.cff").read_text()
    with pytest.raises(SystemExit, match="must be the version"):
        release("https://host/owner/name", "v0.0.1")
