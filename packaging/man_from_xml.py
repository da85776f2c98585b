#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the manual of the D-Bus interface, org.kdump.Kdump1(5), from dbus/*.xml.

The comment before each member is its text. Paragraphs are filled; lines that are indented deeper are columns
of words and meanings; a line that begins with an argument's name and a colon, with "Errors:" or "polkit
action:" begins a paragraph of its own. The table of rights is from these lines and the policy, the list of
errors from the package.

Usage, in the repository: .venv/bin/python packaging/man_from_xml.py > packaging/man/org.kdump.Kdump1.5
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from kdump_service.errors import KdumpError

DBUS = Path(__file__).parents[1] / "dbus"
XML_FILES = ("org.kdump.Kdump1.xml", "org.kdump.Kdump1.Dump.xml")
POLICY_FILE = "org.kdump.Kdump1.policy"
NEVER_ON_THE_BUS = {
    *("KdumpError", "AlreadyRunning", "ServiceUnreachable"),  # the root; of who has no bus to tell it
    *("BadVmcore", "TargetFull", "VerificationFailed", "WorkerFailed"),  # of captures and of kdumpctl convert
}
DATE = "November 23, 2026"
HEAD = f"""\
.\\" SPDX-License-Identifier: LGPL-2.1-or-later
.\\" Made by packaging/man_from_xml.py from dbus/*.xml: edit these.
.Dd {DATE}
.Dt ORG.KDUMP.KDUMP1 5
.Os
.Sh NAME
.Nm org.kdump.Kdump1
.Nd D-Bus interface of kdump-service
.Sh SYNOPSIS
.Bl -tag -width Ds -compact
.It Name on the system bus
.Li org.kdump.Kdump1
.It Object of the service
.Pa /org/kdump/Kdump1
.It Object of each dump
.Pa /org/kdump/Kdump1/dump/NAME
.El
.Sh DESCRIPTION
The service is started when it is called.
Names of types, as in
.Li a(ssss) ,
are those of the D-Bus specification.
"""
TAIL = """\
.Sh RIGHTS
Everybody may read all properties, and call what is not listed here.
Root may do everything.
For others
.Xr polkit 8
decides, by these actions and defaults: for an active session of the machine, for an inactive one, and for who
is not logged in at the machine itself.
.Li auth_admin
asks for an administrator's password each time,
.Li auth_admin_keep
not again for a few minutes; it is asked for if the caller allows that, as
.Xr kdumpctl 8
and
.Xr busctl 1
do.
.Bl -tag -width Ds
{rights}.El
.Sh ERROR NAMES
Errors are named
.Li org.kdump.Kdump1.Error.
and a word; their text says what happened, where, and what to do.
.Bl -tag -width Ds -compact
{errors}.El
.Pp
A call that is none, or that has arguments of wrong types, is answered with one of the errors of
.Li org.freedesktop.DBus.Error .
Messages with a body of more than 32 KiB, and calls beyond 64 at a time from one connection or 2048 from
one user, are refused with
.Li LimitsExceeded .
.Sh EXAMPLES
.Bd -literal
busctl get-property org.kdump.Kdump1 /org/kdump/Kdump1 org.kdump.Kdump1 Ready
busctl set-property org.kdump.Kdump1 /org/kdump/Kdump1 \\e
        org.kdump.Kdump1.Settings Contents s user
busctl call org.kdump.Kdump1 /org/kdump/Kdump1 \\e
        org.freedesktop.DBus.ObjectManager GetManagedObjects
.Ed
.Sh SEE ALSO
.Xr busctl 1 ,
.Xr kdump-service.conf 5 ,
.Xr kdump-problems 7 ,
.Xr kdump-service 8 ,
.Xr kdumpctl 8
"""


def escaped(text: str) -> str:
    """Text that mandoc prints as it is."""
    text = text.replace("\\", "\\e")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


def filled(text: str) -> Iterator[str]:
    """Prose: one sentence begins a line, so that the formatter spaces it."""
    words = " ".join(text.split())
    for sentence in re.split(r"(?<=[^A-Z.]\.)\s+(?=[A-Z])", words):
        yield from (escaped(line) for line in textwrap.wrap(sentence, 110, break_on_hyphens=False))


def paragraphs(comment: str) -> Iterator[list[str]]:
    """Blocks of lines that belong together."""
    lines = textwrap.dedent(comment.strip("\n")).rstrip().splitlines()
    block: list[str] = []
    for line in lines:
        begins = re.match(r"(?:[a-z_]+|Errors|polkit action): ", line)
        deeper = line.startswith(" ")
        if block and (not line.strip() or begins or deeper != block[-1].startswith(" ")):
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def is_continued(block: list[str]) -> bool:
    """Whether deeper lines go on with the text of the line before, as of an argument."""
    return not re.match(r'\s+("[^"]+"|[A-Za-z]+)(\s{2,}|$)', block[0])


def text_of(comment: str) -> Iterator[str]:
    """A comment as mdoc."""
    blocks: list[list[str]] = []
    for block in paragraphs(comment):
        if block[0].startswith(" ") and is_continued(block) and blocks and not blocks[-1][0].startswith(" "):
            blocks[-1] += block
        else:
            blocks.append(block)
    for number, block in enumerate(blocks):
        if block[0].startswith(" "):
            yield from columns(block)
        else:
            if number:
                yield ".Pp"
            yield from filled(" ".join(block))


def columns(block: list[str]) -> Iterator[str]:
    """Lines of word and meaning; a line that is indented deeper goes on with the meaning before."""
    indent = min(len(line) - len(line.lstrip()) for line in block)
    rows: list[list[str]] = []
    for line in block:
        parts = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        if len(line) - len(line.lstrip()) > indent and rows:
            rows[-1][-1] += f" {line.strip()}"
        elif (
            len(parts) == 2
            and re.fullmatch(r"[a-z{}()*]{1,6}", parts[1].split(maxsplit=1)[0])
            and "  " in parts[1]
        ):
            kind, meaning = re.split(r"\s{2,}", parts[1], maxsplit=1)
            rows.append([f"{parts[0]} ({kind})", meaning])
        else:
            rows.append(parts if len(parts) == 2 else [parts[0], ""])
    yield ".Bl -tag -width Ds -compact"
    for word, meaning in rows:
        yield f".It {escaped(word)}"
        yield from filled(meaning)
    yield ".El"


def signature(member: ElementTree.Element) -> str:
    """How a member is called."""
    if member.tag == "property":
        writable = ", can be set" if member.attrib["access"] == "readwrite" else ""
        return f"{member.attrib['name']} ({member.attrib['type']}{writable})"
    arguments = [
        f"{arg.attrib['direction']} {arg.attrib['type']} {arg.attrib['name']}"
        for arg in member.findall("arg")
    ]
    return f"{member.attrib['name']}({', '.join(arguments)})"


def members(interface: ElementTree.Element, tag: str) -> Iterator[tuple[ElementTree.Element, str]]:
    """Members of one kind with their comments."""
    comment = ""
    for child in interface:
        if child.tag is ElementTree.Comment:
            comment = child.text or ""
        elif child.tag == tag:
            yield child, comment


def page(
    documents: Iterable[ElementTree.Element], policy: ElementTree.Element, errors: Iterable[tuple[str, str]]
) -> str:
    """The whole manual page; ``errors`` are names and meanings."""
    lines = [HEAD.rstrip()]
    needing: dict[str, list[str]] = {}
    for node in documents:
        comment = ""
        for child in node:
            if child.tag is ElementTree.Comment:
                comment = child.text or ""
            elif child.tag == "interface":
                name = child.attrib["name"]
                lines.append(f".Sh INTERFACE {name}")
                # Its first words name the interface, which the heading does.
                lines += text_of(re.sub(rf"^(\s*){re.escape(name)}: (\w)", _capital, comment))
                for tag, heading in (("property", "Properties"), ("method", "Methods")):
                    lines += [f".Ss {heading}", ".Bl -tag -width Ds"]
                    for member, text in members(child, tag):
                        lines += [f".It Li {escaped(signature(member))}", *text_of(text)]
                        for action in re.findall(r"polkit action: ([\w.-]+\w)", text):
                            needing.setdefault(action, []).append(f"{name}.{member.attrib['name']}")
                    lines.append(".El")
    rights = "".join(_right(action, needing[action.attrib["id"]]) for action in policy.findall("action"))
    rows = "".join(f".It Li {name}\n{meaning}\n" for name, meaning in errors)
    return "\n".join(lines) + "\n" + TAIL.replace("{errors}", rows).replace("{rights}", rights)


def _right(action: ElementTree.Element, needing: list[str]) -> str:
    """One row of the table of rights."""
    active, inactive, other = (
        action.findtext(f"defaults/{name}") for name in ("allow_active", "allow_inactive", "allow_any")
    )
    settings = (
        ["setting any property of org.kdump.Kdump1.Settings"] if "configure" in action.attrib["id"] else []
    )
    return (
        f".It Li {action.attrib['id']}\n{action.findtext('description')}.\n"
        f"Active: {active}; inactive: {inactive}; others: {other}.\n"
        f"Needed for: {', '.join([*settings, *needing])}.\n"
    )


def _capital(match: re.Match[str]) -> str:
    return match[1] + match[2].upper()


def read(path: Path) -> ElementTree.Element:
    """An XML file with its comments."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return ElementTree.parse(path, parser).getroot()


def error_rows() -> list[tuple[str, str]]:
    """Name and first sentence of each error of the package."""
    found: list[tuple[str, str]] = []
    pending: list[type[KdumpError]] = [KdumpError]
    while pending:
        each = pending.pop()
        pending += each.__subclasses__()
        if each.__module__ == KdumpError.__module__ and each.__name__ not in NEVER_ON_THE_BUS:
            meaning = (each.__doc__ or "").split("\n\n")[0]
            found.append((each.__name__, re.sub(r"``([^`]*)``", r"\1", meaning)))
    return sorted(found)


def made() -> str:
    """The page, from the files of the repository."""
    policy = ElementTree.parse(DBUS / POLICY_FILE).getroot()
    return page([read(DBUS / name) for name in XML_FILES], policy, error_rows())


if __name__ == "__main__":
    sys.stdout.write(made())
