#!/usr/bin/env python3
"""Writes the option tables of the plugin pages from the program's own schemas.

    docs/plugins/generate.py [--check] [PROGRAM]

PROGRAM is target/debug/portcullis unless it is named. Whatever stands between `<!-- options: SIDE -->` and
`<!-- end -->` is made anew, SIDE being schema, consumer_schema or metadata_schema; so are name and priority in the
table of README.md. Meanings are written by people: the last column of a row (in README.md: all after the priority)
stays as it is, and a new option gets an empty one. With --check nothing is written, and the exit code is 1 if
something would change, if a meaning is missing, or if a plugin has no page.
"""

import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- options: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)
LIST = re.compile(r"(<!-- plugins -->\n)(.*?)(<!-- end -->)", re.S)
# Shared by all plugins and described once, in README.md.
COMMON = {"_meta"}
PLURAL = {"": "list", "string": "list of strings", "object": "list of objects", "list": "list of lists"}


def schemas(program):
    out = subprocess.run([program, "schema"], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)["plugins"]


def cells(row):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def rows(table):
    """The rows of a table by the text of their first cell."""
    parts = [cells(line) for line in table.splitlines() if line.startswith("|")]
    return {part[0]: part for part in parts[2:] if part}


def code(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "`" + text.replace("|", "\\|") + "`"


def bounds(schema):
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']}–{schema['maximum']}"
    signs = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("maximum", "≤"))
    return " ".join(f"{sign} {schema[key]}" for key, sign in signs if key in schema)


def kind(schema):
    """The type in a few words."""
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    for key in ("oneOf", "anyOf"):
        if key in schema and "type" not in schema:
            words = dict.fromkeys(kind(one) for one in schema[key])
            return " or ".join(words)
    name = schema.get("type", "object" if "properties" in schema else "any")
    if name == "array":
        items = kind(schema["items"]) if "items" in schema else ""
        return PLURAL.get(items, f"list of {items}")
    return " ".join(filter(None, [name, bounds(schema)]))


def options(schema, prefix=""):
    """Every option with its path, the options inside of objects and of lists of objects included."""
    required = schema.get("required", [])
    for name, one in members(schema).items():
        if name in COMMON and not prefix:
            continue
        yield prefix + name, one, name in required
        if one.get("type") == "object":
            yield from options(one, f"{prefix}{name}.")
        if one.get("type") == "array" and one.get("items", {}).get("type") == "object":
            yield from options(one["items"], f"{prefix}{name}[].")


def members(schema):
    """The properties, and those that appear when another option has some value."""
    found = dict(schema.get("properties", {}))
    for dependency in schema.get("dependencies", {}).values():
        for branch in dependency.get("oneOf", []):
            for name, one in branch.get("properties", {}).items():
                found.setdefault(name, one)
    return found


def default(one, required):
    if required:
        return "required"
    # The members of an object tell their own.
    told = "default" in one and not isinstance(one["default"], dict)
    return code(json.dumps(one["default"], ensure_ascii=False)) if told else ""


def choice(schema):
    """`oneOf` and `anyOf` of required options, as a sentence."""
    for key, words in (("oneOf", "Exactly one of these must be there"), ("anyOf", "At least one of these must be there")):
        groups = [one["required"] for one in schema.get(key, []) if one.get("required")]
        if groups:
            return words + ": " + "; ".join(" + ".join(code(name) for name in group) for group in groups) + ".\n"
    return ""


def table(schema, old):
    kept = rows(old)
    lines = ["| Option | Type | Default | Meaning |", "|---|---|---|---|"]
    missing = []
    for path, one, required in options(schema):
        name = code(path)
        meaning = kept[name][-1] if name in kept else ""
        if not meaning:
            missing.append(path)
        lines.append(f"| {name} | {kind(one)} | {default(one, required)} | {meaning} |")
    if len(lines) == 2:
        return "There are none.\n", missing
    sentence = choice(schema)
    return "\n".join(lines) + "\n" + ("\n" + sentence if sentence else ""), missing


def page(text, plugin):
    missing = []

    def fill(match):
        body, lacking = table(plugin[match[2]] or {}, match[3])
        missing.extend(lacking)
        return match[1] + body + match[4]

    return BLOCK.sub(fill, text), missing


def overview(text, plugins):
    def fill(match):
        kept = rows(match[2])
        lines = match[2].splitlines()[:2]
        for name, plugin in sorted(plugins.items(), key=lambda item: -item[1]["priority"]):
            link = f"[{name}]({name}.md)"
            rest = kept[link][2:] if link in kept else [""] * (len(cells(lines[0])) - 2)
            lines.append("| " + " | ".join([link, str(plugin["priority"]), *rest]) + " |")
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return LIST.sub(fill, text)


def main(arguments):
    check = "--check" in arguments
    named = [one for one in arguments if not one.startswith("-")]
    program = named[0] if named else str(HERE.parent.parent / "target/debug/portcullis")
    plugins = schemas(program)
    faults = []
    for name, plugin in plugins.items():
        file = HERE / f"{name}.md"
        if not file.exists():
            faults.append(f"{file.name} is missing")
            continue
        old = file.read_text(encoding="utf-8")
        new, missing = page(old, plugin)
        faults.extend(f"{file.name}: {path} has no meaning" for path in missing)
        faults.extend(write(file, old, new, check))
    file = HERE / "README.md"
    old = file.read_text(encoding="utf-8")
    faults.extend(write(file, old, overview(old, plugins), check))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def write(file, old, new, check):
    if old == new:
        return []
    if check:
        return [f"{file.name} is not up to date: run docs/plugins/generate.py"]
    file.write_text(new, encoding="utf-8")
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
