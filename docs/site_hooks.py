"""Hooks of the documentation's site: pages from outside docs/, links to the repository's files, formulas.

README.md is the site's first page. Links work in the repository and on the site: a file that a page links to is copied
to ``repository/`` there, and a Markdown file becomes a page.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository/"
PAGES = ("README.md", "CONTRIBUTING.md")

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, CONTRIBUTING and all files that pages link to, and the files that those link to."""
    waiting = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(_uri(path)) is None:
            files.append(_file(config, path))
        for target in _targets(path):
            if target not in known:
                known.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Point links to where the files are on the site, and write formulas as MathML."""
    path = _path(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        target = _resolve(path, link[2])
        if target is None:
            return link[0]
        return f"{link[1]}{posixpath.relpath(_uri(target), folder)}{link[3] or ''}{link[4]}"

    def outside_fences(text: str) -> str:
        text = LINK.sub(on_site, text)
        return FORMULA.sub(lambda formula: convert(formula[1].strip(), display="block"), text)

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [outside_fences(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, outside_fences(markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - by name
    """Leave Sphinx's markup out of docstrings: roles such as ``:class:``, and the second colon before code."""
    return ROLE.sub("", html).replace("::</p>", ":</p>")


def _uri(path: str) -> str:
    """Place on the site of a path in the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return OUTSIDE + (f"{path}/README.md" if (ROOT / path).is_dir() else path)


def _path(uri: str) -> str:
    """Path in the repository of a place on the site."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def _file(config: MkDocsConfig, path: str) -> File:
    if not (ROOT / path).is_dir():
        return File.generated(config, _uri(path), abs_src_path=str(ROOT / path))
    if (ROOT / path / "README.md").exists():
        return File.generated(config, _uri(path), abs_src_path=str(ROOT / path / "README.md"))
    names = "".join(f"- [{file.name}]({file.name})\n" for file in sorted((ROOT / path).iterdir()))
    return File.generated(config, _uri(path), content=f"# {path}\n\n{names}")


def _targets(path: str) -> Iterator[str]:
    """Files of the repository that a page links to."""
    if (ROOT / path).is_dir() and not (ROOT / path / "README.md").exists():
        yield from (file.relative_to(ROOT).as_posix() for file in (ROOT / path).iterdir())
        return
    page = ROOT / path / "README.md" if (ROOT / path).is_dir() else ROOT / path
    if page.suffix != ".md" or not page.exists():
        return
    for link in LINK.finditer(FENCE.sub("", page.read_text())):
        target = _resolve(page.relative_to(ROOT).as_posix(), link[2])
        if target is not None:
            yield target


def _resolve(path: str, link: str) -> str | None:
    """Path in the repository that a page's relative link leads to; None if it leads nowhere there."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target if (ROOT / target).exists() and not target.startswith("..") else None
