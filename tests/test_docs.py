"""The documents: whatever they point at is there, and every formula names its source and its code."""

import inspect
import re
import shlex
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from compose import composed

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
NAME = re.compile(r"ddpm(\.\w+)+")
SOURCE = re.compile(r"[A-Z]\w+( & [A-Z]\w+| et al\.) \(\d{4}\), [^:\[]+: \[ddpm\.")  # Ho et al. (2020), Eq. 2: [ddpm.
MATH = ROOT / "docs" / "math.md"
COMMAND = re.compile(r"python (train|sample|evaluate)\.py (?!--)((?:[^`\n\\]|\\\n)+)")
SWEEP = re.compile(r",(?![^\[]*\])")  # of what stands in brackets, commas make a list


def links(document):
    """(text, target) of every link and image, outside code."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.DOTALL)
    return LINK.findall(prose)


def formulas(document):
    """(what stands between $$ and $$, the paragraph below) of every displayed formula."""
    text = document.read_text()
    parts = re.split(r"^\$\$$", text, flags=re.MULTILINE)
    assert len(parts) % 2, "a $$ is not closed"
    assert text.count("$$") == len(parts) - 1, "a $$ is not alone on its line"
    return [(parts[i].strip(), parts[i + 1].strip().split("\n\n")[0]) for i in range(1, len(parts), 2)]


def commands(text):
    """(verb, overrides) of every command that calls a verb; of a sweep, its first job."""
    for verb, given in COMMAND.findall(text):
        words = shlex.split(re.sub(r"\$\(.*?\)", "told", given).replace("\\\n", " "), comments=True)
        yield verb, [SWEEP.split(word)[0] for word in words if "=" in word and word != "schedule=cubic"]  # added there


def anchors(document):
    """The names that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolved(name):
    """The module of a dotted name, and the chain of objects that leads to what it names."""
    parts, found = name.split("."), "ddpm"
    for part in parts[1:]:
        if not hasattr(import_module(found), "__path__") or not find_spec(f"{found}.{part}"):
            break
        found = f"{found}.{part}"
    chain = [import_module(found)]
    for part in parts[len(found.split(".")) :]:
        assert part in vars(chain[-1]), f"{name}: {chain[-1].__name__} itself has no {part}"
        chain.append(vars(chain[-1])[part])
    return chain


def home(chain):
    """The file in which the last of a chain is defined."""
    last = chain[-1]
    if isinstance(last, property | cached_property):
        last = last.fget if isinstance(last, property) else last.func
    if isinstance(last, classmethod | staticmethod):
        last = last.__func__
    return Path(inspect.getsourcefile(inspect.unwrap(last))).resolve()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document):
    for _, target in links(document):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


NAMED = sorted({(d, text, target) for d in DOCUMENTS for text, target in links(d) if NAME.fullmatch(text)})


@pytest.mark.parametrize(("document", "name", "target"), NAMED, ids=[name for _, name, _ in NAMED])
def test_every_name_is_defined_in_the_file_that_it_links_to(document, name, target):
    assert home(resolved(name)) == (document.parent / target).resolve()
    assert not getattr(resolved(name)[-1], "__isabstractmethod__", False), "it computes nothing itself"


def test_a_name_that_is_elsewhere_or_nowhere_is_noticed():
    assert home(resolved("ddpm.schedule.NoiseSchedule.num_steps")) == ROOT / "src/ddpm/schedule.py"
    assert home(resolved("ddpm.sampler.times")) == ROOT / "src/ddpm/types.py"  # imported there, defined elsewhere
    with pytest.raises(AssertionError, match="no eq_2"):
        resolved("ddpm.schedule.NoiseSchedule.eq_2")
    with pytest.raises(AssertionError, match="no nothing"):
        resolved("ddpm.nothing")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_formula_names_its_source_and_its_code(document):
    for formula, below in formulas(document):
        assert SOURCE.match(below), f"{formula}\n{below}"
    assert document != MATH or len(formulas(document)) > 30


def test_the_mathematics_show_every_equation_of_the_paper():
    sources = " ".join(re.findall(r"Ho et al\. \(2020\), (.*?): \[ddpm", MATH.read_text()))
    assert set(map(int, re.findall(r"Eq\. (\d+)", sources))) == set(range(1, 17))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_markdown_leaves_the_formulas_alone(document):
    """An underscore behind a bracket or a brace, and a star, may become emphasis; a backslash before
    punctuation is lost; < may begin a tag."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.DOTALL)
    inline = re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"^\$\$$.*?^\$\$$", "", prose, flags=re.M | re.S))
    for formula in [*inline, *(text for text, _ in formulas(document))]:
        assert not re.search(r"[^\w\\]_|[*<>]|\\[^a-zA-Z]", formula), formula
        assert formula.count("{") == formula.count("}"), formula


def test_the_mathematics_show_every_figure_that_is_drawn():
    shown = {target for _, target in links(MATH) if target.endswith(".png")}
    assert {f"images/{name}.png" for name in ("schedules", "weights", "bound")} <= shown


def test_every_command_of_the_readme_is_one_and_none_draws_into_the_folder_of_another():
    configs = {verb: [] for verb in ("train", "sample", "evaluate")}
    for verb, words in commands((ROOT / "README.md").read_text()):
        configs[verb].append(composed(*words, verb=verb))
    assert len(configs["train"]) > 7
    assert len(configs["evaluate"]) > 4
    folders = [config["out"] for config in configs["sample"]]
    assert len(folders) > 7
    assert len({str(config) for config in configs["sample"]}) == len(set(folders))
