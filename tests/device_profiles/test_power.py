"""Power sensors, laid out as the kernels of boards and PCs show them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from device_profiles import power
from tests.device_profiles.conftest import lay_out

RAPL = "sys/class/powercap/intel-rapl"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told to go on."""

    class Clock:
        now = 100.0

        def go(self, seconds: float) -> None:
            self.now += seconds

    found = Clock()
    monkeypatch.setattr(power.time, "monotonic", lambda: found.now)
    return found


def monitor(number: int, name: str, **files: str) -> dict[str, str]:
    return {f"sys/class/hwmon/hwmon{number}/{file}": text + "\n" for file, text in {"name": name, **files}.items()}


def counters(zone: str, name: str, microjoules: int, wrap: int = 262143328850) -> dict[str, str]:
    files = {"name": name, "energy_uj": str(microjoules), "max_energy_range_uj": str(wrap)}
    return {f"{RAPL}:{zone}/{file}": text + "\n" for file, text in files.items()}


def test_the_jetson_s_input_rail_is_its_power(orin, clock):
    meter = power.find(orin)
    assert meter is not None
    assert meter.name == "VDD_IN (ina3221)"
    (orin / "sys/class/hwmon/hwmon1/curr1_input").write_text("2800\n")
    clock.go(2)
    assert meter.watts() == pytest.approx((7.0 + 14.0) / 2)
    assert meter.joules == pytest.approx(21.0)


def test_rails_without_a_common_one_are_added(tmp_path, clock):
    rails = {
        "in1_label": "VDD_GPU_SOC",
        "in1_input": "20000",
        "curr1_input": "200",
        "in2_label": "VDD_CPU_CV",
        "in2_input": "20000",
        "curr2_input": "100",
    }
    sums = {"in7_label": "sum of shunt voltages", "in7_input": "1"}  # a channel without a current
    other = {"in1_label": "VIN_SYS_5V0", "in1_input": "5000", "curr1_input": "600"}
    meter = power.find(lay_out(tmp_path, monitor(1, "ina3221", **rails, **sums) | monitor(2, "ina3221", **other)))
    assert meter is not None
    assert meter.name == "VDD_GPU_SOC (ina3221) + VDD_CPU_CV (ina3221) + VIN_SYS_5V0 (ina3221)"
    clock.go(1)
    assert meter.watts() == pytest.approx(4.0 + 2.0 + 3.0)


@pytest.mark.parametrize("chip", ["ina219", "ina226", "ina238"])
def test_a_chip_that_tells_its_power_is_asked_for_that(tmp_path, clock, chip):
    files = {"power1_input": "4800000", "in0_input": "10", "in1_input": "5000", "curr1_input": "999"}
    meter = power.find(lay_out(tmp_path, monitor(0, chip, **files)))
    assert meter is not None
    assert meter.name == chip
    clock.go(1)
    assert meter.watts() == pytest.approx(4.8)


def test_the_jetson_nano_s_own_driver_is_read_in_milliwatts(tmp_path, clock):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = {"0": ("POM_5V_IN", "2500"), "1": ("POM_5V_GPU", "40"), "2": ("POM_5V_CPU", "400")}
    files = {f"{folder}/rail_name_{i}": f"{name}\n" for i, (name, _) in names.items()}
    meter = power.find(
        lay_out(tmp_path, files | {f"{folder}/in_power{i}_input": f"{mw}\n" for i, (_, mw) in names.items()})
    )
    assert meter is not None
    assert meter.name == "POM_5V_IN (ina3221x)"
    clock.go(1)
    assert meter.watts() == pytest.approx(2.5)


def test_a_temperature_sensor_is_no_power_sensor(tmp_path):
    assert power.find(lay_out(tmp_path, monitor(0, "coretemp", power1_input="1000000"))) is None


def test_a_sensor_that_fails_for_a_moment_is_passed_over(tmp_path, clock):
    root = lay_out(tmp_path, monitor(0, "ina226", power1_input="2000000"))
    meter = power.find(root)
    assert meter is not None
    path = root / "sys/class/hwmon/hwmon0/power1_input"
    path.write_text("\n")
    clock.go(1)
    assert meter.watts() is None
    path.write_text("4000000\n")
    clock.go(1)
    assert meter.watts() == pytest.approx(3.0)
    assert (meter.joules, meter.seconds) == (pytest.approx(6.0), 2.0)


def test_an_energy_counter_that_wraps_still_counts_forward(pc, clock):
    meter = power.find(pc)
    assert meter is not None
    clock.go(1)
    (pc / f"{RAPL}:0/energy_uj").write_text("1000000\n")
    assert meter.watts() == pytest.approx(262143.328850 - 262143.0 + 1.0)


def test_a_counter_that_wraps_between_samples_each_time_is_counted_whole(tmp_path, clock):
    root = lay_out(tmp_path, counters("0", "package-0", 900, wrap=1_000_000))
    meter = power.find(root)
    assert meter is not None
    for value in (500_400, 900, 500_400, 900):
        (root / f"{RAPL}:0/energy_uj").write_text(f"{value}\n")
        clock.go(0.1)
        meter.sample()
    assert meter.joules == pytest.approx(2 * 0.4995 + 2 * 0.5005)


def test_all_packages_are_added_and_the_platform_comes_before_them(tmp_path, clock):
    two = counters("0", "package-0", 0) | counters("0:0", "core", 0) | counters("1", "package-1", 0)
    root = lay_out(tmp_path, two)
    meter = power.find(root)
    assert meter is not None
    assert meter.name == "RAPL package-0 + package-1"
    for zone, value in (("0", 3_000_000), ("0:0", 2_000_000), ("1", 4_000_000)):
        (root / f"{RAPL}:{zone}/energy_uj").write_text(f"{value}\n")
    clock.go(2)
    assert meter.watts() == pytest.approx(3.5)
    platform = power.find(lay_out(tmp_path, counters("2", "psys", 0)))
    assert platform is not None
    assert platform.name == "RAPL psys"


def test_an_energy_counter_for_root_only_is_no_sensor_and_says_so(pc):
    counter = pc / f"{RAPL}:0/energy_uj"
    counter.unlink()
    assert power.why_none(pc) == "no power sensor was found"
    counter.mkdir()  # cannot be read, also by root, who may read every file
    assert power.find(pc) is None
    assert "only root may" in power.why_none(pc)


PMIC = """ 3V7_WL_SW_A current(0)=0.10000000A
   VDD_CORE_A current(7)=2.00000000A
   3V3_DAC_A current(17)=0.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.90000000V
   3V3_DAC_V volt(20)=3.31501500V
      EXT5V_V volt(24)=4.87894000V
"""


def test_the_raspberry_pi_5_s_rails_are_those_with_amperes_and_volts():
    assert power.rail_watts(PMIC) == pytest.approx([0.37, 1.8, 0.0])
    assert power.rail_watts('error=1 error_msg="Command not registered"\n') is None


def test_the_raspberry_pi_5_s_chip_is_asked_through_its_tool(tmp_path, monkeypatch, clock):
    tool = tmp_path / "vcgencmd"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdout.write({PMIC!r} if sys.argv[1:] == ['pmic_read_adc'] else '')\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = power._pi_chip()
    assert meter is not None
    clock.go(1)
    assert meter.watts() == pytest.approx(2.17)
    Path(tool).write_text("#!/nowhere\n")
    assert power._pi_chip() is None
