"""A hook of `make docs`: the Markdown files of the repository's root are pages of the site too."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "MIGRATING.md": "migrating.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them, with links that are right where they end up."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text()
        files.append(File.generated(config, page, content=moved(text)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links from pages and notebooks up to the root's files."""
    for name, page in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
        markdown = markdown.replace(f"](../../{name}", f"](../{page}")
    return markdown


def moved(text: str) -> str:
    """A root file's text with its links as seen from `docs/`."""
    text = re.sub(r"\]\(docs/", "](", text)
    for name, page in PAGES.items():
        text = re.sub(rf"\]\({re.escape(name)}(?=[)#])", f"]({page}", text)
    return text
