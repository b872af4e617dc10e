"""What /proc and /sys of real boards are read as."""

from __future__ import annotations

import pytest

from device_profiles import machine, power


def test_a_raspberry_pi_5(pi5):
    found, gaps = machine.machine("portable", pi5)
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert (found.cpu, found.architecture) == ("Cortex-A76", "aarch64")
    assert found.instruction_sets == ["neon", "fp16", "dotprod"]
    assert (found.physical_cores, found.logical_cores) == (4, 4)
    assert found.last_cache_bytes == 2 << 20
    assert found.os == "Debian GNU/Linux 12 (bookworm), kernel 6.6.31+rpt-rpi-2712"
    assert gaps == {}


def test_the_control_group_s_limits_are_the_machine_s(pi5):
    found, _ = machine.machine("portable", pi5)
    assert found.cpu_quota == 1.5
    assert found.memory_total_bytes == found.memory_available_bytes == 512 << 20


def test_a_parent_s_lower_quota_counts(pi5):
    (pi5 / "sys/fs/cgroup/system.slice/cpu.max").write_text("50000 100000\n")
    assert machine.cpu_quota(pi5) == 0.5


def test_a_control_group_path_cannot_leave_its_folder(pi5):
    (pi5 / "proc/self/cgroup").write_text("0::/../../../etc\n")
    assert machine.cpu_quota(pi5) is None


def test_the_pi_s_clock_temperature_and_throttling(pi5):
    state, gaps = machine.condition(pi5)
    assert (state.mhz_now, state.mhz_max, state.temperature_c) == (2400.0, 2400.0, 61.3)
    assert state.throttling is not None
    assert (state.throttling.now, state.throttling.since_boot) == (False, True)
    assert state.throttling.reasons == ["under-voltage since boot", "throttled since boot"]
    assert gaps == {}


@pytest.mark.parametrize(
    ("flags", "now", "since_boot", "reasons"),
    [
        ("0x0", False, False, []),
        ("50005", True, True, ["under-voltage", "throttled"]),
        ("0x80008", True, True, ["soft temperature limit"]),
        ("0x20000", False, True, ["frequency capped since boot"]),
    ],
)
def test_the_firmware_s_flags(pi5, flags, now, since_boot, reasons):
    next(pi5.glob("sys/devices/platform/*/*/get_throttled")).write_text(flags)
    state = machine.throttling(pi5)
    assert state is not None
    assert (state.now, state.since_boot, state.reasons) == (now, since_boot, reasons)


def test_firmware_flags_that_make_no_sense_are_not_guessed(pi5):
    next(pi5.glob("sys/devices/platform/*/*/get_throttled")).write_text("error=1")
    assert machine.throttling(pi5) is None
    assert "throttling" in machine.condition(pi5)[1]


def test_a_jetson_orin(orin):
    found, gaps = machine.machine("portable", orin)
    assert (found.board, found.cpu) == ("NVIDIA Jetson Orin Nano Developer Kit", "Cortex-A78AE")
    assert found.logical_cores == 6
    assert "i8mm" in found.instruction_sets
    assert set(gaps) == {"last cache", "cpu quota"}


def test_the_jetson_s_processor_zone_and_cooling(orin):
    state, _ = machine.condition(orin)
    assert state.temperature_c == 71.5
    assert state.throttling is not None
    assert state.throttling.now
    assert state.throttling.reasons == ["cpufreq-cpu0 lowers the clock", "2 over-current events since boot"]


def test_a_pc(pc):
    found, _ = machine.machine("avx2", pc)
    assert (found.board, found.cpu) == ("ThinkPad T470", "Intel(R) Core(TM) i5-7200U CPU @ 2.50GHz")
    assert found.instruction_sets == ["sse4.2", "avx", "avx2", "fma"]
    assert (found.physical_cores, found.logical_cores) == (2, 4)


def test_the_pc_s_condition(pc):
    state, gaps = machine.condition(pc)
    assert (state.mhz_now, state.temperature_c) == (703.0, 54.0)
    assert state.throttling is not None
    assert state.throttling.reasons == ["12 thermal events since boot"]
    assert set(gaps) == {"clock max"}


def test_cores_of_two_kinds_are_both_named(pi5):
    little = (pi5 / "proc/cpuinfo").read_text().replace("0xd0b", "0xd05", 2)
    (pi5 / "proc/cpuinfo").write_text(little)
    assert machine.cpu_name(pi5) == "2 x Cortex-A55 + 2 x Cortex-A76"


def test_an_unknown_core_shows_its_numbers(pi5):
    (pi5 / "proc/cpuinfo").write_text((pi5 / "proc/cpuinfo").read_text().replace("0xd0b", "0xfff"))
    assert machine.cpu_name(pi5) == "Arm core 0x41/0xfff"


def test_an_empty_system_yields_reasons_and_no_guesses(tmp_path):
    found, gaps = machine.machine("portable", tmp_path)
    state, more = machine.condition(tmp_path)
    assert (found.board, found.cpu_quota, found.last_cache_bytes) == (None, None, None)
    assert (state.mhz_now, state.mhz_max, state.temperature_c, state.throttling) == (None, None, None, None)
    assert set(gaps | more) == {
        "board", "last cache", "cpu quota", "memory", "clock now", "clock max", "temperature", "throttling"
    }  # fmt: skip
    assert power.find(tmp_path) is None


def test_this_machine_can_be_read():
    found, _ = machine.machine("portable")
    assert found.memory_total_bytes > 0
    assert 1 <= found.usable_cores <= found.logical_cores


def test_threads_follow_the_quota_of_the_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(machine, "cpu_quota", lambda _root: None)
    assert machine.usable_threads(tmp_path) == 4
    monkeypatch.setattr(machine, "cpu_quota", lambda _root: 2.5)
    assert machine.usable_threads(tmp_path) == 2
    monkeypatch.setattr(machine, "cpu_quota", lambda _root: 0.5)
    assert machine.usable_threads(tmp_path) == 1
