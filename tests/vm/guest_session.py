# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside a guest: a command on a terminal of its own, answering password prompts.

`guest_session.py [--remote-user=NAME] [--password=TEXT] COMMAND...`. With a user, the command runs in a
login session as from another host, made by login(1) through PAM, so that logind knows it; without one, in our
own session. What it prints goes to standard output; its status is ours. A prompt that ends in "Password: "
(as polkit's agent asks) gets the password, or an empty one.
"""

import os
import pty
import re
import select
import shlex
import sys
import termios
import time

DEADLINE_SEC = 180.0
REMOTE_HOST = "192.0.2.7"  # RFC 5737: for documentation, nobody has it


def main() -> int:
    arguments = sys.argv[1:]
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, options[name] = arguments.pop(0).partition("=")
    user = options.get("--remote-user")
    child, terminal = pty.fork()
    if not child:
        login = ["login", "-f", "-h", REMOTE_HOST, user] if user else ["/bin/sh"]
        os.execvp(login[0], login)
    begin, end = f"begin-{os.getpid()}-", f"end-{os.getpid()}-"
    # The shell puts the words together, so that the echo of what is typed does not hold them.
    typed = f"PS1=; printf '%s%s' begin- {begin[6:]}; {shlex.join(arguments)}; echo end''{end[3:]}$?; exit\n"
    os.write(terminal, typed.encode())
    said = ""
    answered = 0
    status = re.compile(rf"{end}(\d+)")
    deadline = time.monotonic() + DEADLINE_SEC
    while not (found := status.search(said)):
        if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
            print(f"{said}\n(no end within its time)")
            return 124
        try:
            said += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the session ended
            print(said)
            return 125
        prompts = said.count("Password: ")
        if prompts > answered:
            answered = prompts
            # What is typed before the agent has switched the echo off, it throws away; no event tells.
            while termios.tcgetattr(terminal)[3] & termios.ECHO and time.monotonic() < deadline:
                time.sleep(0.05)
            os.write(terminal, f"{options.get('--password', '')}\n".encode())
    print(said.partition(begin)[2].partition(found[0])[0].replace("\r", "").strip())
    os.close(terminal)
    os.waitpid(child, 0)
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
