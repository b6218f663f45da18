"""Holds README's tables to the program.

    readme.py path/to/surveylab-gateway

Every flag of `serve` has a row with its environment variable and its default, and there is no other; every reason of an
error has a row; every command has a row, and every method is named.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def rows(readme, heading):
    """The table rows of a section: lists of cells."""
    section = readme.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]


def flags(binary):
    """Each flag of `serve --help` with its environment variable and its default."""
    # Not the environment's: it would show in the help.
    text = subprocess.run([binary, "serve", "--help"], check=True, capture_output=True, text=True, env={}).stdout
    for block in re.split(r"\n(?= +(?:-\w, )?--)", text)[1:]:
        name = re.search(r"--([a-z][a-z-]*)", block)[1]
        if name not in ("help", "version"):
            variable = re.search(r"\[env: ([A-Z_]+)", block)
            default = re.search(r"^ *\[default: (.*)\]$", block, re.M)
            yield f"--{name}", variable and variable[1], default and default[1]


def commands(binary):
    """The commands that `--help` lists."""
    text = subprocess.run([binary, "--help"], check=True, capture_output=True, text=True, env={}).stdout
    listed = text.split("\nCommands:\n")[1].split("\n\n")[0]
    return set(re.findall(r"^  ([a-z]+(?:-[a-z]+)*)", listed, re.M)) - {"help"}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    readme = (ROOT / "README.md").read_text("utf-8")
    wrong = []

    settings = {cells[0].split("`")[1].split()[0]: cells for cells in rows(readme, "Settings") if "`--" in cells[0]}
    known = {flag: (variable, default) for flag, variable, default in flags(sys.argv[1])}
    wrong += [f"{flag} has no row among the settings" for flag in known if flag not in settings]
    wrong += [f"{flag} is no flag of serve" for flag in settings if flag not in known]
    for flag in known.keys() & settings.keys():
        variable, default = known[flag]
        if variable and f"`{variable}`" not in settings[flag][1]:
            wrong.append(f"{flag} can be set by {variable}")
        if default and settings[flag][2].strip() != f"`{default}`":
            wrong.append(f"{flag} has the default {default}")

    source = "".join((ROOT / "src" / name).read_text("utf-8") for name in ("invitation/failure.rs", "grpc/status.rs"))
    # IN_DOUBT is a state.
    reasons = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', source)) - {"IN_DOUBT"}
    told = {cell.strip() for cells in rows(readme, "Errors") for cell in cells}
    wrong += [f"{reason} has no row among the errors" for reason in sorted(reasons - told)]

    named = {cells[0].split("`")[1].split()[0] for cells in rows(readme, "Commands") if "`" in cells[0]}
    listed = commands(sys.argv[1])
    wrong += [f"{command} has no row among the commands" for command in sorted(listed - named)]
    wrong += [f"{command} is no command" for command in sorted(named - listed)]

    contract = (ROOT / "proto/surveylab/invitation/v1/invitation.proto").read_text("utf-8")
    methods = set(re.findall(r"^  rpc (\w+)\(", contract, re.M))
    wrong += [f"{method} is not named" for method in sorted(methods) if method not in readme]

    if wrong or not known or not reasons or not listed or not methods:
        sys.exit("\n".join(["README is wrong:", *wrong]))
    print(f"README has {len(known)} settings, {len(reasons)} reasons of errors, {len(listed)} commands and {len(methods)} methods, "
          "as the program has")


if __name__ == "__main__":
    main()
