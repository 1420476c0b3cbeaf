"""A real browser without a window: opens a page from the file system and hands back what it became.

No driver and no package: Chromium prints the finished document itself (`--dump-dom`).
"""

import functools
import json
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@functools.cache
def program() -> str | None:
    """Chromium's path; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def needs_browser(test):
    """Marks a test that opens a page; it skips, and says so, where there is no Chromium."""
    absent = "no Chromium is installed (Debian: apt-get install chromium); the page was not opened"
    return pytest.mark.browser(pytest.mark.skipif(program() is None, reason=absent)(test))


def open_page(page: Path, fragment: str = "") -> ElementTree.Element:
    """The document after its script has run, as a tree."""
    return _parse(_dump(f"{page.resolve().as_uri()}#{fragment}"))


def use_page(page: Path, script: str, fragment: str = ""):
    """What `script` returns after it has acted on the page; `page` and `view` are its document and its window.

    It waits until the page has said that it is ready (`data-ready` on its root).

    Args:
        page: the HTML file.
        script: the body of a JavaScript function; its result goes through JSON.
        fragment: what follows "#" in the address.
    """
    with tempfile.TemporaryDirectory() as folder:
        harness = Path(folder) / "harness.html"
        address = json.dumps(f"{page.resolve().as_uri()}#{fragment}")
        harness.write_text(
            f"""<iframe id="frame" width="1280" height="900"></iframe>
            <pre id="result">"the page did not load"</pre><script>
            const act = () => {{
              if (!("ready" in frame.contentDocument.documentElement.dataset)) return setTimeout(act, 20);
              let result;
              try {{
                result = ((view, page) => {{ {script} }})(frame.contentWindow, frame.contentDocument);
              }} catch (error) {{ result = String(error); }}
              document.getElementById("result").textContent = JSON.stringify(result);
            }};
            frame.onload = act;
            frame.src = {address};</script>""",
            encoding="utf-8",
        )
        document = _parse(_dump(harness.as_uri(), "--allow-file-access-from-files"))
    return json.loads(text_of(document, "result"))


def text_of(document: ElementTree.Element, identity: str) -> str:
    """All text inside the element with this id."""
    return "".join(document.find(f".//*[@id='{identity}']").itertext())


def _dump(address: str, *more: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            *more,
            "--dump-dom",
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout


class _Tree(HTMLParser):
    """HTML as Chromium prints it, well nested, into an ElementTree."""

    def __init__(self):
        super().__init__()
        self.builder = ElementTree.TreeBuilder()

    def handle_starttag(self, tag, attributes):
        self.builder.start(tag, {name: value or "" for name, value in attributes})
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag):
        self.builder.end(tag)

    def handle_data(self, data):
        self.builder.data(data)


def _parse(text: str) -> ElementTree.Element:
    parser = _Tree()
    parser.feed(text[text.index("<html") :].strip())
    parser.close()
    return parser.builder.close()
