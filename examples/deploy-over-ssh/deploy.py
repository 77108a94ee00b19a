#!/usr/bin/env python3
"""Bring hosts that are reached by SSH to one release of meshnode and one set of deployments, or back to what they were.

    deploy.py --hosts hosts.txt --wheel dist/meshnode-0.1.0-py3-none-any.whl deployments/*.toml

What it does, each step only where it is needed, so that a second run changes nothing:

1. installs the wheel on each host, beside the release that runs (`~/meshnode/releases/ID`, a virtual environment each);
2. host after host: stops the node, which finishes its requests, and starts it with the new release; the first host
   founds the mesh where there is none, the others join with an invite for one device that is made for them and travels
   on standard input alone; goes on when the node is a member and every deployment stands as well as before;
3. copies the folders of the deployment files to the first host, and applies them there;
4. on any failure writes the former revisions of the deployments anew, puts the hosts that it changed back to their former
   release, and ends with 1.

A line of hosts.txt is a host as ssh knows it, and options of `meshnode join` for it:

    ann@edge1.example.org --region eu-west
    ann@edge2.example.org --region us-east --models /srv/models

Hosts need a shell and Python 3.11 with venv; this machine needs ssh. Nothing but the standard library is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shlex
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = "meshnode"  # below the home folder of whoever logs in
PROGRAM = f"{ROOT}/current/venv/bin/meshnode"
STANDS_WELL = ("ready", "paused", "asleep")


class Failed(Exception):
    """A step did not work; what was changed before it is to be taken back."""


@dataclass
class Host:
    """One machine.

    Attributes:
        address: As ssh takes it.
        options: Options of `meshnode join` for it, as words.
        ssh: The command that reaches it, as words.
        before: The release that it had when this run changed it; None if it was not changed.
    """

    address: str
    options: list[str]
    ssh: list[str]
    before: str | None = field(default=None)

    def run(self, script: str, given: bytes = b"") -> str:
        """Run a script there and return what it printed; what it says on stderr is shown.

        Raises:
            Failed: if it ends with anything but 0.
        """
        done = subprocess.run(  # noqa: S603 - that is what this program is for
            [*self.ssh, self.address, script], input=given, stdout=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            raise Failed(
                f"{self.address}: {script.splitlines()[-1]!r} ended with {done.returncode}"
            )
        return done.stdout.decode()

    def works(self, script: str) -> bool:
        """Whether a script ends with 0 there."""
        try:
            self.run(f"{script} >/dev/null 2>&1")
        except Failed:
            return False
        return True

    def meshnode(self, *words: str, given: bytes = b"") -> str:
        """Run a command of the release that is current there."""
        return self.run(shlex.join([PROGRAM, *words]), given)


def say(line: str) -> None:
    """Tell what is done."""
    print(line, flush=True)


# Releases


def install(host: Host, wheel: Path, release: str) -> None:
    """Lay a release beside what runs."""
    folder = f"{ROOT}/releases/{release}"
    if host.works(f"test -e {folder}/complete"):
        return
    say(f"{host.address}: installing release {release}")
    name = shlex.quote(wheel.name)
    host.run(f"mkdir -p {folder} && cat > {folder}/{name}", wheel.read_bytes())
    host.run(
        f"cd {folder} && rm -rf venv && python3 -m venv venv && venv/bin/pip install --quiet ./{name} && touch complete"
    )


def current(host: Host) -> str:
    """Return the release that a host has; empty for none."""
    return host.run(f"readlink {ROOT}/current || true").strip().rpartition("/")[2]


def update(host: Host, first: Host, release: str, *, service: bool) -> None:
    """Let a host run a release, and wait until the mesh stands as well as before."""
    had = current(host)
    if had == release and host.works(f"{PROGRAM} status"):
        say(f"{host.address}: has release {release}")
        return
    before = badly(first) if had else set()
    host.before = had
    say(f"{host.address}: {had or 'nothing'} -> {release}")
    switch(host, first, release, service=service)
    wait_until_well(first, before)


def switch(host: Host, first: Host, release: str, *, service: bool) -> None:
    """Stop the node, change the release, and start it."""
    if current(host):
        host.meshnode("stop")
    host.run(f"ln -sfn releases/{release} {ROOT}/current")
    if host.works(f"test -e {ROOT}/joined"):
        start(host, service=service)
        return
    if host is first:
        host.meshnode("join", "--new", "--detach", *host.options)
    else:
        invite = first.meshnode("invite", "--ttl", "15m", "--uses", "1")
        host.meshnode("join", "-", "--detach", *host.options, given=invite.encode())
    host.run(f"touch {ROOT}/joined")
    if service:
        host.meshnode("stop")
        start(host, service=True)


def start(host: Host, *, service: bool) -> None:
    """Start the node of a host that is a member."""
    if service:
        host.meshnode("service", "install")
    else:
        host.meshnode("join", "--detach", *host.options)


def badly(first: Host) -> set[str]:
    """Return the deployments that do not stand well; those are nobody's fault here."""
    found = json.loads(first.meshnode("deployments", "--json"))
    return {each["name"] for each in found if each["status"] not in STANDS_WELL}


def wait_until_well(first: Host, before: set[str], limit_s: float = 180.0) -> None:
    """Wait until every deployment stands as well as before.

    Raises:
        Failed: if one does not in time.
    """
    deadline = time.monotonic() + limit_s
    while worse := badly(first) - before:
        if time.monotonic() > deadline:
            raise Failed(f"{', '.join(sorted(worse))}: not ready any more since the update")
        time.sleep(1.0)


# Deployments


def apply(first: Host, files: list[Path], timeout_s: int) -> None:
    """Copy the deployment files, with all that lies beside them, and apply them.

    Raises:
        Failed: if they are refused, or do not become ready in time.
    """
    folders = sorted({file.resolve().parent for file in files})
    names = {folder: f"{ROOT}/deployments/{number}" for number, folder in enumerate(folders)}
    for folder, place in names.items():
        say(f"{first.address}: copying {folder}")
        first.run(f"rm -rf {place} && mkdir -p {place} && tar -xf - -C {place}", packed(folder))
    there = [f"{names[file.resolve().parent]}/{file.name}" for file in files]
    say(first.meshnode("apply", "--timeout", f"{timeout_s}s", *there).rstrip())


def packed(folder: Path) -> bytes:
    """Return a folder as a tar archive, without what is hidden."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                archive.add(path, path.name)
    return content.getvalue()


def revisions(first: Host) -> dict[str, str]:
    """Return the revision that counts of each deployment."""
    return {
        each["name"]: each["revision"]
        for each in json.loads(first.meshnode("deployments", "--json"))
    }


def restore(first: Host, before: dict[str, str]) -> None:
    """Write the former revisions anew of what differs; what is new goes. One that cannot be restored keeps no other."""
    for name, revision in revisions(first).items():
        try:
            if name not in before:
                say(f"{first.address}: deleting {name}, which was new")
                first.meshnode("delete", name)
            elif revision != before[name]:
                say(f"{first.address}: restoring {name} as it was")
                first.meshnode("rollback", name, "--to", before[name])
        except Failed as error:
            say(f"not restored: {error}")


# The whole


def deploy(
    hosts: list[Host], wheel: Path, files: list[Path], *, service: bool, timeout_s: int
) -> bool:
    """Do all of it; return whether it worked."""
    first = hosts[0]
    release = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
    before: dict[str, str] | None = None
    try:
        for host in hosts:
            install(host, wheel, release)
        for host in hosts:
            update(host, first, release, service=service)
        if files:
            before = revisions(first)
            apply(first, files, timeout_s)
    except Failed as error:
        say(f"failed: {error}")
        take_back(hosts, before, service=service)
        return False
    say(f"all {len(hosts)} hosts have release {release}")
    return True


def take_back(hosts: list[Host], before: dict[str, str] | None, *, service: bool) -> None:
    """Undo what this run changed, the last first, as far as that works."""
    first = hosts[0]
    if before is not None:
        try:
            restore(first, before)
        except Failed as error:  # nobody says what is deployed
            say(f"nothing is restored: {error}")
    for host in reversed(hosts):
        if not host.before:  # it was not changed, or had nothing to go back to
            continue
        say(f"{host.address}: back to {host.before}")
        try:
            host.run(f"{PROGRAM} stop || true")
            host.run(f"ln -sfn releases/{host.before} {ROOT}/current")
            start(host, service=service)
        except Failed as error:
            say(f"not back: {error}")


def hosts_of(text: str, ssh: list[str]) -> list[Host]:
    """Read hosts.txt."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [Host(words[0], words[1:], ssh) for words in lines if words]


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Deploy meshnode over SSH; see the head of this file."
    )
    parser.add_argument("--hosts", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument(
        "--ssh", default="ssh -o BatchMode=yes", help="the command that reaches a host"
    )
    parser.add_argument("--service", action="store_true", help="start nodes at boot (systemd)")
    parser.add_argument(
        "--timeout", type=int, default=120, help="seconds for each deployment to be ready"
    )
    parser.add_argument("deployments", type=Path, nargs="*")
    given = parser.parse_args()
    hosts = hosts_of(given.hosts.read_text(encoding="utf-8"), shlex.split(given.ssh))
    if not hosts:
        parser.error(f"{given.hosts} names no host")
    worked = deploy(
        hosts, given.wheel, given.deployments, service=given.service, timeout_s=given.timeout
    )
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
