"""The repository's words: the field's standard terms, in sentences that a newcomer reads once."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Private words, and the field's terms for them.
BETTER = {
    r"(with)?(stands?|standing|stood)": "robust, still correctly classified, robust up to",
    r"met|meets?": "attacked, seen, has",
    r"answer(s|ed|ing)?": "predict, output, logits",
    r"taken for": "misclassified as",
    r"as (it is|they are|itself)": "clean, unchanged",
    r"(hold|holds|held) against": "compared with",
    r"(go|goes|went|gone|going) on( where)?": "continue, resume",
    r"of (one's|your|a user's|anyone's|the user's) own": "custom",
    r"draws(?! (a|an|another|from|its|new|no|one|random|the|two|uniformly)\b)": "random numbers, generator",
    r"(images?|s|ms|seconds?|minutes?|evaluations?|steps?|queries|passes|bytes|logits?|gradients?|epochs?) an? "
    r"(image|channel|rank|batch|class|step|query|second|epoch|update|process)": "per image, per channel, per rank",
}
QUESTIONS = {"what", "where", "when", "how", "which", "whether", "who", "whose", "why", "of", "that", "if"}
RECORDS = ("benchmarks/results/", "pretrained/", "experiments/")
HERE = Path(__file__).relative_to(ROOT).as_posix()

OLD_WORD = re.compile("|".join(rf"(?P<_{i}>(?<![a-z])(?:{words})(?![a-z]))" for i, words in enumerate(BETTER)), re.I)


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [name for name in found if name and (ROOT / name).exists()]


def is_record(name: str) -> bool:
    """Return True for the output of a run, which is never edited, unlike the pages about it."""
    return name.startswith(RECORDS) and not name.endswith((".py", ".md"))


TEXTS = [
    name
    for name in tracked("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.jinja", ".ci/run")
    if name != HERE and not is_record(name)
]
CODE = [name for name in TEXTS if name.endswith(".py")]


@pytest.mark.parametrize("name", TEXTS)
def test_words_are_the_fields_own(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    found = [
        f"{name}:{number}: {match[0]!r} for {BETTER[list(BETTER)[int(str(match.lastgroup)[1:])]]}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        for match in OLD_WORD.finditer(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", CODE)
def test_docstrings_begin_with_what_a_thing_does_or_is(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = re.findall(r"\w+", ast.get_docstring(node) or "")
            if words and words[0].lower() in QUESTIONS:
                found.append(f"{name}:{getattr(node, 'lineno', 1)}: {' '.join(words[:8])}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".md")])
def test_lines_of_prose_are_short(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    limit = {number: line for number, line in enumerate(lines, 1) if len(line) > 120}
    long = {number: line for number, line in limit.items() if name == "README.md" or not line.startswith(("|", "!["))}
    assert not long, long
