"""Pages of the documentation that follow from the code: a hook of MkDocs (see mkdocs.yml).

* `reference/commands.md`: every command with its options, from the argument parser.
* `reference/configuration.md`: every key of config.yaml, from its JSON schema.
* `contributing.md` and others: files at the root, which readers on the site want too. Links between them and docs/ are
  those that the repository has, and are turned here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
AT_ROOT = {name: name.lower() for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}
"""Files at the root, and the pages that they become."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file holds."""
    pages = {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        **{page: (ROOT / name).read_text(encoding="utf-8") for name, page in AT_ROOT.items()},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to a file at the root lead to its page, and those of such a file into docs/ to theirs."""
    for name, target in AT_ROOT.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}")
    return re.sub(r"\]\(docs/", "](", markdown) if page.file.src_uri in AT_ROOT.values() else markdown


def commands() -> str:
    """A section a command: what it does, an example, its options."""
    from vrm.cli import parser
    from vrm.cli.commands import COMMANDS

    found = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    groups = {"What a person types": False, "Stages of the workflow": True}
    lines = ["# Commands", "", "`vrm COMMAND --help` says the same in a terminal.", ""]
    for title, is_stage in groups.items():
        lines += [f"## {title}", ""]
        for command in COMMANDS.values():
            if command.is_stage == is_stage:
                lines += [f"### vrm {command.name}", "", command.text, "", "```bash", command.example, "```", ""]
                lines += [*_options(found.choices[command.name]), ""]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| option | what it is |"
    yield "|:--|:--|"
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[0] if action.option_strings else action.dest
        needed = ", needed" if action.required else ""
        among = f" One of: {', '.join(map(str, action.choices))}." if action.choices else ""
        yield f"| `{name}`{needed} | {_cell(action.help or '')}{_cell(among)} |"


def configuration() -> str:
    """A section a part of config.yaml: its keys, their types, defaults and meaning."""
    from vrm.config import json_schema

    schema = json.loads(json_schema())
    parts = schema["$defs"]
    lines = ["# Configuration", "", "Every key of `config.yaml`. `vrm schema` prints the JSON schema, for editors.", ""]
    lines += ["## The file", "", *_keys(schema, parts), ""]
    for name in _reached(schema, parts):
        if "properties" in parts[name]:
            lines += [f"## {name}", "", parts[name].get("description", ""), "", *_keys(parts[name], parts), ""]
    return "\n".join(lines)


def _reached(schema: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    """Parts in the order in which a reader of the file meets them."""
    found: list[str] = []

    def visit(node: object) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.append(name)
                visit(parts[name])
            for key, value in node.items():
                if key != "$defs":
                    visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(schema)
    return found


def _keys(part: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    yield "| key | type | default | what it is |"
    yield "|:--|:--|:--|:--|"
    for key, entry in part.get("properties", {}).items():
        default = f"`{json.dumps(entry['default'], ensure_ascii=False)}`" if "default" in entry else ""
        default = default if len(default) <= 60 else "see config.yaml"
        yield f"| `{key}` | {_type(entry, parts)} | {_cell(default)} | {_cell(entry.get('description', ''))} |"


def _type(entry: dict[str, Any], parts: dict[str, Any]) -> str:
    """A type in words; a part links to its section."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if "properties" in parts[name] else _type(parts[name], parts)
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_type(option, parts) for option in entry["anyOf"]))
    if "enum" in entry or "const" in entry:
        return _cell(", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")])))
    if entry.get("type") == "array":
        return f"list of {_type(entry.get('items', {}), parts)}"
    if entry.get("type") == "object":
        inner = [*entry.get("patternProperties", {}).values(), entry.get("additionalProperties")]
        named = next((value for value in inner if isinstance(value, dict)), None)
        return f"by name: {_type(named, parts)}" if named else "mapping"
    return str(entry.get("type", "any"))


def _cell(text: str) -> str:
    """Text that stays inside a table's cell, and says nothing in HTML."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
