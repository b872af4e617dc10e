"""File trees of known machines, as their kernels lay them out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from device_profiles import schema
from tests.round_profile import round_kernels


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _arm_core(number: int, part: str, features: str, implementer: str = "0x41") -> str:
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
    )


_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_MEMORY = "MemTotal:       {total} kB\nMemFree:         1000000 kB\nMemAvailable:   {available} kB\n"


@pytest.fixture
def pi5(tmp_path):
    """Raspberry Pi 5, 8 GB, Raspberry Pi OS, once throttled since boot, in a service with a CPU quota."""
    cores = {
        f"sys/devices/system/cpu/cpu{i}/{name}": text
        for i in range(4)
        for name, text in {
            "cpufreq/scaling_cur_freq": "2400000\n" if i else "1500000\n",
            "cpufreq/cpuinfo_max_freq": "2400000\n",
            "topology/thread_siblings_list": f"{i}\n",
        }.items()
    }
    caches = {"index0/size": "64K\n", "index1/size": "64K\n", "index2/size": "512K\n", "index3/size": "2048K\n"}
    return lay_out(
        tmp_path,
        cores
        | {f"sys/devices/system/cpu/cpu0/cache/{name}": text for name, text in caches.items()}
        | {
            "proc/cpuinfo": "".join(_arm_core(i, "0xd0b", _A76) for i in range(4))
            + "Revision\t: d04170\nSerial\t\t: 1\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/meminfo": _MEMORY.format(total=8256528, available=7500000),
            "proc/self/cgroup": "0::/system.slice/splitedge-agent.service\n",
            "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n',
            "sys/devices/system/cpu/online": "0-3\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61300\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0x50000\n",
            "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/splitedge-agent.service/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/splitedge-agent.service/memory.max": "536870912\n",
        },
    )


@pytest.fixture
def orin(tmp_path):
    """Jetson Orin Nano: six Cortex-A78AE, power monitor on the input rail, one zone that answers nothing, cooling at work."""
    zones = {
        0: ("cpu-thermal", "71500\n"),
        1: ("gpu-thermal", "93000\n"),
        2: ("cv0-thermal", ""),
        3: ("tj-thermal", "93000\n"),
    }
    return lay_out(
        tmp_path,
        {f"sys/class/thermal/thermal_zone{i}/type": name + "\n" for i, (name, _) in zones.items()}
        | {f"sys/class/thermal/thermal_zone{i}/temp": text for i, (_, text) in zones.items()}
        | {
            "proc/cpuinfo": "".join(_arm_core(i, "0xd42", _A76 + " i8mm") for i in range(6)),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/meminfo": _MEMORY.format(total=7802080, available=5000000),
            "sys/devices/system/cpu/online": "0-5\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device1/cur_state": "4\n",
            "sys/class/hwmon/hwmon1/name": "ina3221\n",
            "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
            "sys/class/hwmon/hwmon1/in1_input": "5000\n",
            "sys/class/hwmon/hwmon1/curr1_input": "1400\n",
            "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
            "sys/class/hwmon/hwmon1/in2_input": "5000\n",
            "sys/class/hwmon/hwmon1/curr2_input": "400\n",
            "sys/class/hwmon/hwmon2/name": "soctherm_oc\n",
            "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
            "sys/class/hwmon/hwmon2/oc3_event_cnt": "2\n",
        },
    )


@pytest.fixture
def pc(tmp_path):
    """A laptop: two cores with two threads each, AVX2, throttle counters, an energy counter."""
    flags = "fpu sse sse2 ssse3 sse4_1 sse4_2 avx f16c fma avx2 bmi2 erms"
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    return lay_out(
        tmp_path,
        {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text + "\n" for i, text in siblings.items()}
        | {f"sys/devices/system/cpu/cpu{i}/thermal_throttle/package_throttle_count": "12\n" for i in range(4)}
        | {
            "proc/cpuinfo": "".join(
                f"processor\t: {i}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM) i5-7200U CPU @ 2.50GHz\n"
                f"cpu MHz\t\t: {700 + i}.000\nflags\t\t: {flags}\n\n"
                for i in range(4)
            ),
            "proc/meminfo": _MEMORY.format(total=16000000, available=9000000),
            "sys/class/dmi/id/product_name": "ThinkPad T470\n",
            "sys/devices/system/cpu/online": "0-3\n",
            "sys/class/hwmon/hwmon0/name": "coretemp\n",
            "sys/class/hwmon/hwmon0/temp1_input": "54000\n",
            "sys/class/thermal/thermal_zone0/type": "acpitz\n",
            "sys/class/thermal/thermal_zone0/temp": "29800\n",
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000\n",
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
        },
    )


_BOARD = schema.Machine(
    "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", "aarch64", ["neon", "dotprod"], "portable", 4, 4, 4, None, 8 << 30, 7 << 30,
    2 << 20, "Debian GNU/Linux 12 (bookworm), kernel 6.6.31",
)  # fmt: skip


@pytest.fixture
def profile():
    """A profile with round figures: 10 multiply-accumulates or 2 bytes a nanosecond, whatever the kernel."""
    made = schema.DeviceProfile(
        schema_version=schema.SCHEMA_VERSION,
        created="2026-01-03T10:00:00+00:00",
        quick=False,
        machine=_BOARD,
        kernels=round_kernels(),
        overhead=schema.Overhead(call_us=5.0, op_us=0.5),
        copy_gbps=9.5,
        warmup=schema.Warmup(False, 42.0, 1.9, 1.2),
        condition=schema.Condition(
            2400.0, 2400.0, 61.3, schema.Throttling(False, True, ["throttled since boot"], "Raspberry Pi firmware")
        ),
        power=schema.Power("sensor", "VDD_IN (ina3221)", 3.1, 6.9),
        unmeasured={"cpu quota": "there is no control group hierarchy of version 2"},
    )
    return copy.deepcopy(made)
