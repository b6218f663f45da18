"""Draws what a person sees of an import: runs one on a terminal of its own, and writes its screen as SVG.

    python3 -m venv target/tools/capture && target/tools/capture/bin/pip install pyte rich
    target/tools/capture/bin/python docs/capture.py target/release/surveylab-gateway docs/import.svg

Nothing is sent: the gateway is a sandbox, whose SurveyLab refuses some rows and asks for a pause.
"""

import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 96, 12
ROWS = 20_000
RATE = 400

# Without the fonts that rich would have a browser fetch.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="monospace">
<style>{styles}
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#1b1b1b"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def start(arguments, directory, environment):
    """A process, with all that it prints in one pipe."""
    return subprocess.Popen(
        arguments, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def address(process, pattern):
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match[1]
    sys.exit("it ended before it listened")


def text(screen):
    """The screen's lines with their colours, down to the last one in use."""
    lines = []
    for y in range(screen.lines):
        line = Text()
        for x in range(screen.columns):
            cell = screen.buffer[y][x]
            colour = None if cell.fg == "default" else cell.fg
            line.append(cell.data, style=f"{colour or ''} {'bold' if cell.bold else ''}".strip() or None)
        lines.append(line)
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return Text("\n").join(lines)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    binary, target = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/customers.csv", "w") as rows:
            rows.write("crk,e-mail,First name\n")
            rows.writelines(f"ticket-{row},person{row}@example.com,Anna\n" for row in range(ROWS))
        faults = ["status=400,crk_prefix=ticket-77", "half_body,crk=ticket-500", "status=429,retry_after=3,skip=6000,times=1"]
        sandbox = start(
            [binary, "sandbox", "--listen=127.0.0.1:0", *(f"--fault={fault}" for fault in faults)], directory, {}
        )
        surveylab = address(sandbox, r"(127\.0\.0\.1:\d+)")
        gateway = start(
            [binary, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", f"--rate={RATE}/s", "--burst=20",
             "--log-format=json", f"--surveylab-url=http://{surveylab}/api.php"],
            directory, {"SURVEYLAB_API_TOKEN": "sandbox"},
        )
        try:
            listening = address(gateway, r'"grpc":"([^"]*)"')
            screen = pyte.Screen(COLUMNS, LINES)
            stream = pyte.ByteStream(screen)
            command = ["import", "customers.csv", "--collector", "8379821739721"]
            prompt = f"$ surveylab-gateway {' '.join(command)}\r\n"
            stream.feed(prompt.encode())
            process, terminal = pty.fork()
            if process == 0:
                os.chdir(directory)
                os.execve(binary, ["surveylab-gateway", *command],
                          {"TERM": "xterm-256color", "GATEWAY_TARGET": f"http://{listening}"})
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            end = time.monotonic() + 60
            # The moment that tells most: SurveyLab has just asked for a pause.
            while "SurveyLab asked to wait" not in "\n".join(screen.display):
                if time.monotonic() > end or not select.select([terminal], [], [], 10)[0]:
                    sys.exit("the bar never said that SurveyLab asked to wait:\n" + "\n".join(screen.display))
                stream.feed(os.read(terminal, 65536))
            os.kill(process, 9)
            os.waitpid(process, 0)
        finally:
            for child in (gateway, sandbox):
                child.kill()
                child.wait()
        console = Console(width=COLUMNS, record=True, file=open(os.devnull, "w"), force_terminal=True)
        console.print(text(screen), no_wrap=True, crop=True)
        target.write_text(console.export_svg(title="", code_format=SVG, unique_id="import"), "utf-8")


if __name__ == "__main__":
    main()
