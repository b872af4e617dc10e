"""Checks of the processor, on boards in good and in bad order."""

from __future__ import annotations

import pytest

from edge_agent.doctor import processor
from kernels import isa
from tests.edge_agent.doctor.conftest import LayOut

CPU = "sys/devices/system/cpu/cpu0/cpufreq/"
ZONE = "sys/class/thermal/thermal_zone"
FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
ORIN = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"}


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({}, "ok"),
        ({CPU + "scaling_governor": "ondemand\n", CPU + "scaling_driver": "cpufreq-dt\n"}, "ok"),
        ({CPU + "scaling_governor": "powersave\n", CPU + "scaling_driver": "cpufreq-dt\n"}, "warn"),
        ({CPU + "scaling_governor": "powersave\n", CPU + "scaling_driver": "intel_pstate\n"}, "ok"),
    ],
)
def test_a_governor_that_keeps_the_lowest_clock_is_noted(lay_out: LayOut, files: dict[str, str], verdict: str) -> None:
    found = processor.clock(lay_out(files))
    assert found.verdict == verdict
    assert ("scaling_governor" in found.advice) == (verdict == "warn")


@pytest.mark.parametrize(
    ("flags", "verdict", "words", "advice"),
    [
        ("0x0", "ok", "no throttling", set()),
        ("0x50005", "warn", "under-voltage", {"supply"}),
        ("0x50000", "warn", "under-voltage since boot", {"supply"}),
        ("0x40000", "warn", "throttled since boot", {"cooling"}),
        ("0x90009", "warn", "soft temperature limit", {"supply", "cooling"}),
    ],
)
@pytest.mark.parametrize("source", ["file", "vcgencmd", "file that cannot be read"])
def test_a_pi_that_is_or_was_slowed_down_is_noted(
    lay_out: LayOut, source: str, flags: str, verdict: str, words: str, advice: set[str]
) -> None:
    tool = {"usr/bin/vcgencmd": f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled={flags}\n'}
    files = {"file": {FLAGS: flags}, "vcgencmd": tool, "file that cannot be read": {FLAGS: "", **tool}}[source]
    found = processor.heat(lay_out(files))
    assert (found.verdict, bool(found.advice)) == (verdict, verdict == "warn")
    assert words in found.found
    assert {word for word in ("supply", "cooling") if word in found.advice} == advice


def test_a_tool_that_does_not_end_is_not_waited_for_long(lay_out: LayOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.machine.tools.output, "__kwdefaults__", {"timeout": 0.2})
    found = processor.heat(lay_out({"usr/bin/vcgencmd": "#!/bin/sh\nexec sleep 60\n"}))
    assert (found.verdict, "unknown" in found.found) == ("ok", True)


def test_the_hottest_zone_counts(lay_out: LayOut) -> None:
    files = {"0/type": "cpu-thermal\n", "0/temp": "51000\n", "1/type": "gpu-thermal\n", "1/temp": "86500\n"}
    files |= {"2/type": "PMIC-Die\n", "2/temp": "100000\n", "3/type": "cv0-thermal\n", "3/temp": ""}
    found = processor.heat(lay_out({ZONE + name: text for name, text in files.items()}))
    assert found.verdict == "warn"
    assert "gpu-thermal 86.5 °C" in found.found
    assert "cooling" in found.advice


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({"usr/bin/nvpmodel": "#!/bin/sh\nprintf 'NVPM WARN: fan\\nNV Power Mode: 15W\\n2\\n'\n"}, "15W, mode 2"),
        ({"var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n"}, "mode 1"),
        ({"usr/bin/nvpmodel": "#!/bin/sh\nexit 1\n"}, "unknown"),
    ],
)
def test_the_power_mode_of_a_jetson_is_reported(lay_out: LayOut, files: dict[str, str], mode: str) -> None:
    found = processor.power_mode(lay_out(ORIN | files))
    assert found is not None
    assert found.found.startswith(mode)
    assert found.verdict == "ok"


def test_cores_that_a_power_mode_switched_off_are_noted(lay_out: LayOut) -> None:
    cpus = {"sys/devices/system/cpu/present": "0-5\n", "sys/devices/system/cpu/online": "0-1,4-5\n"}
    found = processor.power_mode(lay_out(ORIN | cpus))
    assert found is not None
    assert found.verdict == "warn"
    assert "2 cores" in found.found


def test_only_a_jetson_has_power_modes(lay_out: LayOut) -> None:
    assert processor.power_mode(lay_out({"proc/device-tree/model": "Raspberry Pi 5\0"})) is None


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, None),
        (ORIN, "the Jetson's GPU"),
        ({"usr/bin/nvidia-smi": "#!/bin/sh\necho 'NVIDIA RTX A2000'\n"}, "NVIDIA RTX A2000"),
        ({"dev/nvhost-gpu": ""}, "an NVIDIA GPU"),
    ],
)
def test_a_gpu_that_heads_do_not_use_is_reported(lay_out: LayOut, files: dict[str, str], name: str | None) -> None:
    found = processor.gpu(lay_out(files))
    assert (found is None) == (name is None)
    if found is not None:
        assert found.verdict == "ok"
        assert found.found.startswith(f"{name} is not used")


@pytest.mark.parametrize(("quota", "verdict"), [("150000", "ok"), ("50000", "warn")])
def test_a_quota_is_told_and_one_under_a_core_is_noted(lay_out: LayOut, quota: str, verdict: str) -> None:
    found = processor.cores(lay_out({"sys/fs/cgroup/cpu.max": f"{quota} 100000\n", "proc/self/cgroup": "0::/\n"}))
    assert found.verdict == verdict
    assert f"quota {int(quota) / 100000:g} cores" in found.found
    assert "at most 1" in found.found


@pytest.mark.skipif(len(isa.ISAS) == 1, reason="there is no lower instruction set here")
def test_a_lower_instruction_set_than_could_be_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITEDGE_ISA", raising=False)
    assert processor.instructions().verdict == "ok"
    monkeypatch.setenv("SPLITEDGE_ISA", "portable")
    found = processor.instructions()
    assert found.verdict == "warn"
    assert "SPLITEDGE_ISA" in found.advice
