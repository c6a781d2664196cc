"""One Android device through adb: which one, what it is, running a program on it.

Source: adb(1) of Android's platform-tools: `adb devices -l`, `adb -s SERIAL shell`, whose exit code is the program's.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from compress.errors import UserError

FOLDER = "/data/local/tmp"
STATES = {
    "unauthorized": "it does not trust this computer: unlock it and allow USB debugging",
    "authorizing": "it is being asked whether it trusts this computer: try again in a moment",
    "offline": "it does not answer: plug it in again, or run: adb reconnect",
    "recovery": "it is in recovery: start it",
    "sideload": "it is in sideload: start it",
    "bootloader": "it is in its boot loader: start it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program on this computer answered."""

    code: int
    text: str  # output and errors together


Run = Callable[[Sequence[str], float], Answer]  # a command and the seconds that it may take


def run(command: Sequence[str], seconds: float) -> Answer:
    """Run adb.

    Raises:
        UserError: it is not installed, or took too long.
    """
    program = shutil.which(command[0])
    if program is None:
        raise UserError(
            f"{command[0]} is not on PATH: install Android's platform-tools, or time on this host with another --target"
        )
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{' '.join(command[:4])} ... took more than {seconds:g} s: is the device locked up?"
        ) from error
    return Answer(code=done.returncode, text=done.stdout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that answers."""

    serial: str
    description: str  # "Android 15, Google Pixel 8, Tensor G3"
    run: Run

    def shell(self, command: Sequence[str], *, seconds: float = 600.0) -> Answer:
        """Run a program on the device."""
        return self.run(["adb", "-s", self.serial, "shell", shlex.join(command)], seconds)

    def push(self, path: Path) -> str:
        """Copy a file to the device, under a name of its contents; where it is there already, it stays.

        Raises:
            UserError: the device refused it.
        """
        there = f"{FOLDER}/mdcompress-{sha256(path.read_bytes()).hexdigest()[:16]}{path.suffix}"
        if self.shell(["ls", there], seconds=60.0).code == 0:
            return there
        answer = self.run(["adb", "-s", self.serial, "push", str(path), there], 600.0)
        if answer.code:
            raise UserError(f"{path} could not be copied to {self.serial}: {last_lines(answer.text)}")
        return there


def find(serial: str | None, run: Run) -> Device:
    """The device asked for, or the only one.

    Raises:
        UserError: none, several, or one that does not let itself be used; says what to do.
    """
    listed = _listed(run(["adb", "devices", "-l"], 60.0))
    if not listed:
        raise UserError("no Android device: plug one in with USB debugging on, or start an emulator; see: adb devices")
    if serial is not None and serial not in listed:
        raise UserError(f"no Android device {serial!r} (connected: {', '.join(listed)})")
    if serial is None and len(listed) > 1:
        raise UserError(f"{len(listed)} Android devices: choose one with --device ({', '.join(listed)})")
    chosen = serial or next(iter(listed))
    state = listed[chosen]
    if state != "device":
        known = STATES.get(state.split()[0], "see: adb devices")
        raise UserError(f"Android device {chosen} is {state!r}: {known}")
    return Device(serial=chosen, description=_described(chosen, run), run=run)


def _listed(answer: Answer) -> dict[str, str]:
    """State by serial, from `adb devices -l`: "SERIAL   device usb:1-1 product:shiba model:Pixel_8 transport_id:1"."""
    if answer.code:
        raise UserError(f"adb devices failed: {last_lines(answer.text)}")
    found = {}
    _, _, rows = answer.text.partition("List of devices attached")
    for line in rows.splitlines():
        serial, _, rest = line.strip().partition(" ")
        if serial and not serial.startswith("*"):
            words = rest.split()
            permissions = rest.strip().startswith("no permissions")
            found[serial] = (
                "no permissions (see http://developer.android.com/tools/device.html)"
                if permissions
                else (words[0] if words else "unknown")
            )
    return found


def _described(serial: str, run: Run) -> str:
    def property_of(name: str) -> str:
        return run(["adb", "-s", serial, "shell", f"getprop {name}"], 60.0).text.strip()

    release, maker, model = (
        property_of(f"ro.{name}") for name in ("build.version.release", "product.manufacturer", "product.model")
    )
    chip = property_of("ro.soc.model") or property_of("ro.board.platform") or "chip not told"
    if not model:
        raise UserError(f"Android device {serial} does not say what it is; see: adb -s {serial} shell getprop")
    return f"Android {release}, {maker} {model}, {chip}"


def last_lines(text: str, count: int = 3) -> str:
    """The end of what was printed, as one line."""
    return "; ".join(line.strip() for line in text.strip().splitlines()[-count:]) or "nothing printed"
