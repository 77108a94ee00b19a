"""What starts the daemon at boot, as text: a systemd unit, a launchd property list, a Windows task.

Pure: paths in, text out. What it takes to install them is in `meshnode.cli.service`.
"""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Final

from meshnode.limits import SERVICE_START_TIMEOUT_S, SERVICE_STOP_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "meshnode"
"""The unit's and the task's name."""

LAUNCHD_LABEL: Final = "org.meshnode.node"
"""The launchd job's name."""

RESTART_S: Final = 5
"""Pause before a daemon that failed is started again; it gives up after `_RESTARTS` in ten minutes."""

_RESTARTS = 30  # a network that comes up late, or a disk that is freed, has some minutes

_IN_UNIT = r'^ExecStart=.*"{}" "((?:[^"\\]|\\.)*)"'
_IN_PLIST = r"<string>{}</string>\s*<string>(.*?)</string>"
_IN_TASK = r'<Arguments>.*{} (?:"([^"]*)"|([^\s"<]+))'

# Options that systemd itself enforces by seccomp or prctl: these work in user units too.
_SEALED = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)
# These need mount namespaces, which a user's manager often may not make. Left out on purpose:
# PrivateDevices and ProtectClock (they hide accelerators), MemoryDenyWriteExecute (runtimes compile),
# PrivateTmp (a control socket of a long data folder lies in /tmp), ProtectHome (data may lie there).
_SYSTEM_SEALED = (
    "ProtectSystem=full",
    "ProtectControlGroups=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
)


def systemd_unit(command: Sequence[str], data_dir: str, *, user: str | None) -> str:
    """Return a systemd unit.

    Args:
        command: Program (an absolute path) and arguments.
        data_dir: The data folder, absolute.
        user: For a system unit, the user that the daemon runs as; None makes a user's own unit.
    """
    system = user is not None
    sealed = (*_SEALED, *(_SYSTEM_SEALED if system else ()))
    lines = [
        "# Written by `meshnode service install`; it is replaced when that is run again.",
        "[Unit]",
        "Description=meshnode: this device's part of an inference mesh",
        *_only_on_a_member(data_dir),
        *(("Wants=network-online.target", "After=network-online.target") if system else ()),
        "StartLimitIntervalSec=600",
        f"StartLimitBurst={_RESTARTS}",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        *((f"User={user}",) if user not in (None, "root") else ()),
        "WorkingDirectory=/",
        f"ExecStart={_systemd_command(command)}",
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        f"TimeoutStartSec={SERVICE_START_TIMEOUT_S}",
        f"TimeoutStopSec={SERVICE_STOP_TIMEOUT_S}",
        "UMask=0077",
        "# What it prints at a terminal holds an invite, which the journal must not keep.",
        "StandardOutput=null",
        *sealed,
        *((f"ReadWritePaths={_systemd_word(data_dir, expands=False)}",) if system else ()),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if system else 'default.target'}",
        "",
    ]
    return "\n".join(lines)


def _only_on_a_member(data_dir: str) -> tuple[str, ...]:
    """Let systemd pass over a node that has left its mesh; `join --rejoin` refuses it in any case.

    A condition takes the rest of its line as it is, but for `%`: there is no way to write every path.
    """
    path = f"{data_dir}/mesh"
    if not path.isprintable():
        return ()
    return (f"ConditionPathExists={path.replace('%', '%%')}",)


def _systemd_command(command: Sequence[str]) -> str:
    program, *arguments = command
    words = [_systemd_word(each, expands=True) for each in arguments]
    return " ".join([_systemd_word(program, expands=False), *words])


def _systemd_word(text: str, *, expands: bool) -> str:
    """Quote one word of a unit (systemd.syntax(7)); `expands`: `$` names a variable there."""
    written = []
    for character in text:
        if character in '\\"':
            written.append("\\" + character)
        elif character == "%":
            written.append("%%")
        elif character == "$" and expands:
            written.append("$$")
        elif not character.isprintable():
            written.append("".join(f"\\x{byte:02x}" for byte in character.encode()))
        else:
            written.append(character)
    return f'"{"".join(written)}"'


def folder_of(text: str) -> str | None:
    """Return the data folder that a file written here starts its daemon on, or None if it is not ours."""
    return option_of(text, "--data-dir")


def option_of(text: str, option: str) -> str | None:
    """Return what a file written here gives its daemon as an option, such as `--config`, or None."""
    if (found := re.search(_IN_UNIT.format(option), text, re.MULTILINE)) is not None:
        return _of_systemd_word(found[1])
    if (found := re.search(_IN_PLIST.format(option), text, re.DOTALL)) is not None:
        return unescape(found[1])
    if (found := re.search(_IN_TASK.format(option), text)) is not None:
        quoted, bare = found[1], found[2]
        return bare if quoted is None else unescape(quoted).replace("\\\\", "\\")
    return None


def _of_systemd_word(text: str) -> str:
    """Undo `_systemd_word` for an argument of a command."""
    raw = re.sub(rb"\\x([0-9a-f]{2})|\\(.)|%(%)|\$(\$)", _unquoted, text.encode())
    return raw.decode(errors="replace")


def _unquoted(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return bytes.fromhex(found[1].decode())
    return found[2] or found[3] or found[4] or b""


def launchd_plist(command: Sequence[str], label: str = LAUNCHD_LABEL) -> str:
    """Return a launchd property list for a user's agent. Never tried on a Mac so far."""
    import plistlib  # brings XML, which every other command does without

    job = {
        "Label": label,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": SERVICE_STOP_TIMEOUT_S,
        "Umask": 0o077,
        "StandardOutPath": "/dev/null",  # it holds an invite
        "StandardErrorPath": "/dev/null",  # the log file in the data folder has it all
    }
    return plistlib.dumps(job, sort_keys=False).decode()


def windows_task(command: Sequence[str], user: str) -> str:
    r"""Return a scheduled task that runs when a user logs in. Never tried on Windows so far.

    Args:
        command: Program and arguments.
        user: Whose task it is, as `DOMAIN\name`.
    """
    from xml.sax.saxutils import escape

    program, arguments = command[0], " ".join(_windows_word(each) for each in command[1:])
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers><LogonTrigger><UserId>{escape(user)}</UserId></LogonTrigger></Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(user)}</UserId><LogonType>InteractiveToken</LogonType>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>{_RESTARTS}</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec><Command>{escape(program)}</Command><Arguments>{escape(arguments)}</Arguments></Exec>
  </Actions>
</Task>
"""


def _windows_word(text: str) -> str:
    """Quote one argument as the C run-time library reads it (backslashes before a quote double)."""
    if text and not set(text) & set(' \t"'):
        return text
    written, backslashes = '"', 0
    for character in text:
        if character == "\\":
            backslashes += 1
            continue
        doubled = 2 * backslashes + 1 if character == '"' else backslashes
        written += "\\" * doubled + character
        backslashes = 0
    return written + "\\" * (2 * backslashes) + '"'
