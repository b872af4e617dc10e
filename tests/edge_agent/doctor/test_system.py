"""Checks of the system, on boards in good and in bad order."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.doctor import MACHINE_CHECKS, system
from tests.edge_agent.doctor.conftest import LayOut

NOW = datetime(2027, 5, 4, 12, 30, tzinfo=UTC)
INSTALLED = datetime(2027, 1, 1, tzinfo=UTC)


def test_a_system_that_shows_nothing_fails_nothing(tmp_path: Path) -> None:
    found = [check(tmp_path) for check in MACHINE_CHECKS]
    assert {check.verdict for check in found if check is not None} == {"ok"}


# --- platform


def test_the_board_and_its_system_are_named(lay_out: LayOut) -> None:
    found = system.board(lay_out({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}))
    assert found.found.startswith("Raspberry Pi 4 Model B Rev 1.4; ")


@pytest.mark.parametrize(
    ("bits", "kernel", "verdict"), [(1, "aarch64", "warn"), (2, "aarch64", "ok"), (1, "arm", "ok")]
)
def test_a_32_bit_userland_on_a_64_bit_kernel_is_noted(lay_out: LayOut, bits: int, kernel: str, verdict: str) -> None:
    root = lay_out({"bin/sh": f"\x7fELF{chr(bits)}\x01\x01", "proc/sys/kernel/arch": f"{kernel}\n"})
    found = system.userland(root)
    assert found is not None
    assert found.verdict == verdict
    assert f"{32 * bits}-bit" in found.found


def test_programs_that_are_no_elf_files_say_nothing(lay_out: LayOut) -> None:
    assert system.userland(lay_out({"bin/sh": "#!/bin/busybox\n", "proc/sys/kernel/arch": "aarch64\n"})) is None


@given(st.binary(max_size=20))
def test_any_bytes_have_bits_or_none(head: bytes) -> None:
    assert system.elf_bits(head) in (None, 32, 64)


@pytest.mark.parametrize("kib", [4, 16, 64])
def test_the_page_size_is_reported(lay_out: LayOut, kib: int) -> None:
    root = lay_out({"proc/self/auxv": ""})
    (root / "proc/self/auxv").write_bytes(struct.pack("=8Q", 33, 1 << 40, 6, kib * 1024, 17, 100, 0, 0))
    found = system.page_size(root)
    assert found is not None
    assert (found.verdict, found.found.split(";")[0]) == ("ok", f"{kib} KiB")


# --- memory

MEMORY = "MemTotal:  1000000 kB\nMemAvailable:  {} kB\nSwapTotal: {} kB\nSwapFree: {} kB\n"


@pytest.mark.parametrize(
    ("available", "swap", "compiled", "verdict"),
    [
        (400_000, 0, True, "ok"),
        (400_000, 0, False, "warn"),
        (400_000, 500_000, False, "ok"),  # compiling may use swap
        (200_000, 500_000, True, "warn"),  # a head must not
    ],
)
def test_memory_must_do_for_heads_and_before_that_for_compiling(
    lay_out: LayOut, available: int, swap: int, compiled: bool, verdict: str
) -> None:
    root = lay_out({"proc/meminfo": MEMORY.format(available, swap, swap)})
    assert system.memory(root, compiled=compiled).verdict == verdict


def test_swap_and_zram_are_reported(lay_out: LayOut) -> None:
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 512000 0 100\n/var/swap file 102400 0 -2\n"
    root = lay_out({"proc/meminfo": MEMORY.format(900_000, 614_400, 512_000), "proc/swaps": swaps})
    assert "500 of 600 MiB swap free, 500 of it zram" in system.memory(root).found


# --- date


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (NOW, "ok"),
        (datetime(1970, 1, 1, tzinfo=UTC), "warn"),
        (datetime(2026, 12, 31, tzinfo=UTC), "warn"),  # before the installation
        (datetime(2106, 2, 7, tzinfo=UTC), "warn"),
    ],
)
def test_a_clock_that_cannot_be_right_is_noted(tmp_path: Path, now: datetime, verdict: str) -> None:
    found = system.date(tmp_path, now, INSTALLED)
    assert found.verdict == verdict
    assert ("TLS" in found.advice) == (verdict == "warn")


@pytest.mark.parametrize(
    ("shown", "verdict", "words"),
    [
        ("NTP=yes\nNTPSynchronized=yes", "ok", ""),
        ("NTP=yes\nNTPSynchronized=no", "warn", "firewall"),
        ("NTP=no\nNTPSynchronized=no", "warn", "set-ntp"),
        ("nonsense", "ok", ""),
    ],
)
def test_a_clock_that_is_not_synchronized_is_noted(lay_out: LayOut, shown: str, verdict: str, words: str) -> None:
    found = system.date(lay_out({"usr/bin/timedatectl": f"#!/bin/sh\necho '{shown}'\n"}), NOW, INSTALLED)
    assert found.verdict == verdict
    assert words in found.advice


# --- load


def stat(pid: int, name: str, ticks: int) -> str:
    return f"{pid} ({name}) R 1 1 1 0 -1 4194304 100 0 0 0 {ticks} 3 0 0 20 0 1 0 100 1000 10\n"


@pytest.mark.parametrize(
    ("average", "name", "ticks", "verdict"),
    [
        ("90.00", "ffmpeg", 10_000, "warn"),
        ("0.10", "ffmpeg", 10_000, "ok"),  # it has just begun
        ("90.00", "ffmpeg", 0, "ok"),
        ("90.00", "edge-agent", 10_000, "ok"),
    ],
)
def test_a_program_that_takes_the_cores_is_named(
    lay_out: LayOut, average: str, name: str, ticks: int, verdict: str
) -> None:
    root = lay_out({"proc/loadavg": f"{average} 1.00 1.00 2/300 1234\n", "proc/900000/stat": stat(900000, name, 50)})
    lay_out({"proc/900001/stat": stat(900001, "idle", 7_000_000), "proc/900002/stat": "garbage"})
    found = system.load(root, lambda: lay_out({"proc/900000/stat": stat(900000, name, 50 + ticks)}))
    assert found.verdict == verdict
    assert (name in found.found) == (ticks > 0)


@given(st.integers(1, 1 << 22), st.text(st.characters(exclude_characters="\n"), max_size=15), st.integers(0, 1 << 40))
def test_the_name_of_a_process_may_be_any_text(pid: int, name: str, ticks: int) -> None:
    found = system.parse_stat(stat(pid, name, ticks))
    assert found is not None
    assert (found.pid, found.ticks) == (pid, ticks + 3)
    assert found.name.isprintable()


@given(st.text(max_size=60))
def test_any_text_is_a_process_or_none(text: str) -> None:
    system.parse_stat(text)
