"""Which process a number means: a pid alone may be given out again, and means nothing on another machine or in another container."""

from __future__ import annotations

from pathlib import Path


def place() -> str:
    """This machine's table of processes: the boot and the pid namespace. Empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except (OSError, UnicodeDecodeError):
        return ""


def born(pid: int) -> int:
    """When a process began, in ticks since boot (proc(5), field 22 of stat); 0 where there is none, or only what is left of one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if len(fields) < 20 or fields[0] in "ZX" else int(fields[19])
