"""The steps of the lab, in their order. Each proves one thing of the service, or raises `LabError`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import first_hour
from device_profiles.schema import KINDS, DeviceProfile
from edge_agent.bench.results import Result
from edge_agent.service.upgrade import SETTLE
from edge_server.config import ServeConfig
from edge_server.service import unit as unit_of_server
from kernels import isa
from tests.systemd import emulated, install, release
from tests.systemd.install import AGENT, MOUNT, SETTINGS
from tests.systemd.lab import API, CACHE, FRAME, STATE, UNIT, WARNING, Lab, SkippedError
from tests.systemd.machine import LabError, changed, wait_for
from tests.systemd.server import MODEL, ROOT

BETTER, WORSE, BEST = "0.9.1", "0.9.3", "0.9.99"  # versions of releases that the lab makes
EXPOSURE, EXPOSURE_OF_CAMERA = 1.4, 2.5  # the most that `systemd-analyze security` may say
BOOT_S: Final = 20.0  # the most that a boot may take without a server
SETTLE_S: Final = 60.0  # the most until the service is ready again after the cause of a failure is gone
CLOCK: Final = "/etc/splitedge-lab-clock"
#: The shared library that tells the agent another time; a file holds the time, so a clock can be set while it runs.
FAKE_CLOCK: Final = f"""[Service]
Environment=LD_PRELOAD=/usr/lib/MACHINE-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""
#: A module that Python imports at its start. Then SIGUSR1 blocks the event loop, and after SIGUSR2 every head hangs.
STALL: Final = """import signal, time
def hang(*_):
    from edge_agent.runtime.engine import Engine
    from splitedge import limits
    limits.HEAD_STUCK = SECONDS
    Engine.process = lambda *_: time.sleep(1e6)
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1e6))
signal.signal(signal.SIGUSR2, hang)
"""


@dataclass(frozen=True)
class Step:
    """A step. ``vital``: without it no later step makes sense. ``long``: left out with --quick."""

    name: str
    run: Callable[[Lab], str | None]
    vital: bool = False
    long: bool = False


# --- install and serve


def boot_bare(lab: Lab) -> str:
    """The system as it is before the installation, after one boot, which changes files of systemd."""
    took = lab.machine.boot()
    lab.machine.off()
    lab.before = lab.machine.snapshot()
    lab.machine.boot()
    return f"{took:.1f} s, {len(lab.before)} files"


def install_release(lab: Lab) -> None:
    """`install-agent --offline`, with settings as options."""
    lab.server.start()
    install.by_installer(lab.machine, lab.server, lab.shared)


def becomes_ready(lab: Lab) -> None:
    lab.ready(SETTLE_S)
    said = lab.machine.run(AGENT, "service", "status").stdout
    if lab.machine.show(UNIT, "Type") != "notify" or not lab.says().startswith("ready"):
        raise LabError(f"the status is not ready: {said}")


def answers_frame(lab: Lab) -> str:
    found = lab.answer()
    return f"{found['payload_bytes']} bytes over the link"


def infer_command(lab: Lab) -> None:
    lab.put_frame()
    options = ("--config", "/etc/splitedge/agent.toml", "--token-file", "/etc/splitedge/token")
    cache = {"SPLITEDGE_CACHE_DIR": "/run/infer"}
    said = lab.machine.run(AGENT, "infer", *options, FRAME, timeout=120 * lab.patience, **cache).stdout
    if "frames answered 1/1" not in said:
        raise LabError(f"`edge-agent infer` answered no frame: {said[-300:]}")


def bench_command(lab: Lab) -> str:
    """The installed program measures a model of the server. A backend that is missing is a row."""
    options = ("--config", "/etc/splitedge/agent.toml", "--token-file", "/etc/splitedge/token", "--mode", "split")
    few = ("-b", "native,onnxruntime,litert", "-t", "1", "-r", "4", "--rounds", "2", "-o", "json")
    cache = {"SPLITEDGE_CACHE_DIR": "/run/infer"}
    said = lab.machine.run(AGENT, "bench", "-m", MODEL, *options, *few, timeout=300 * lab.patience, **cache).stdout
    result = msgspec.json.decode(said, type=Result)
    found = {row.backend: row for row in result.rows}
    if found["native"].times is None or found["native"].times.runs != 4:
        raise LabError(f"our kernels were not measured: {found['native'].failure}")
    if not all(found[name].failure for name in ("onnxruntime", "litert")):
        raise LabError("a backend that is not installed has figures")
    if result.emulated != lab.emulated:
        raise LabError(f"the result says emulated = {result.emulated}")
    lab.figures["bench_resident_mib"] = found["native"].memory.resident_mib if found["native"].memory else 0.0
    return f"{len(result.rows)} rows, {lab.figures['bench_resident_mib']:.0f} MiB"


def profile_command(lab: Lab) -> str:
    """The installed program measures the machine."""
    said = lab.machine.run(AGENT, "profile", "--quick", "--json", timeout=300 * lab.patience).stdout
    profile = msgspec.json.decode(said, type=DeviceProfile)
    if {kernel.kind for kernel in profile.kernels} != set(KINDS):
        raise LabError("the profile lacks kinds of kernels")
    return f"{len(profile.kernels)} kernels"


def exposure(lab: Lab) -> str:
    lab.figures["exposure"] = _exposure(lab, UNIT)
    return f"exposure {lab.figures['exposure']:.1f}"


def confined_process(lab: Lab) -> str:
    """What the kernel says of the running process: no privileges, and filters of system calls."""
    process, first = (_status(lab, pid) for pid in (lab.pid(), 1))
    if process["Uid"].split()[1] == "0" or int(process["CapEff"], 16) or int(process["CapBnd"], 16):
        raise LabError(f"the process has the user {process['Uid']} and the capabilities {process['CapEff']}")
    if process["NoNewPrivs"] != "1":
        raise LabError("the process can get new privileges")
    # the container's own filters apply to process 1 too
    filters = int(process["Seccomp_filters"]) - int(first["Seccomp_filters"])
    if filters == 0 and lab.emulated:
        raise SkippedError("qemu-user has no filters of system calls; user and capabilities are right")
    if filters <= 0:
        raise LabError("no filter of system calls is in force")
    return f"{filters} filters of system calls"


def camera(lab: Lab) -> str:
    """The drop-in for cameras."""
    lab.machine.run(AGENT, "service", "install", "--camera")
    try:
        lab.ready(SETTLE_S)
        return f"exposure {_exposure(lab, UNIT, EXPOSURE_OF_CAMERA):.1f}"
    finally:
        lab.machine.run(AGENT, "service", "install", "--no-camera")
        lab.ready(SETTLE_S)


def server_unit(lab: Lab) -> str:
    """The unit that `edge-server service install` writes."""
    executable = Path("/opt/splitedge/current/bin/edge-server")
    text = unit_of_server.render(unit_of_server.UnitOptions(executable, ServeConfig(host="0.0.0.0"), compiles=False))
    unit, path = "splitedge-server.service", "/run/systemd/system/splitedge-server.service"
    lab.machine.run("sh", "-c", 'printf "%s\n" "$1" >"$2" && systemctl daemon-reload', "sh", text, path)
    try:
        said = lab.machine.run("systemd-analyze", "verify", path, check=False)
        if said.returncode != 0 or said.stderr.strip():
            raise LabError(f"systemd-analyze verify: {said.stderr.strip()[:300]}")
        return f"exposure {_exposure(lab, unit):.1f}"
    finally:
        lab.machine.run("sh", "-c", 'rm -f "$1" && systemctl daemon-reload', "sh", path)


def verified_unit(lab: Lab) -> None:
    said = lab.machine.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}", check=False)
    if said.returncode != 0 or said.stderr.strip():
        raise LabError(f"systemd-analyze verify: {said.stderr.strip()[:300]}")


def compiles_nothing(lab: Lab) -> str:
    """A restart with an empty cache compiles no kernel and loads the library for this processor; the unit forbids new
    code in memory.
    """
    lab.systemctl("stop")
    lab.machine.run("sh", "-c", f"find {CACHE} -mindepth 1 -delete")
    cursor = lab.cursor()
    lab.systemctl("start")
    took = lab.ready(SETTLE_S)
    lab.answer()
    left = lab.machine.run("find", CACHE, "-name", "*.nb[ic]").stdout.split()
    said = [text for _, text in lab.journal(cursor) if "compiled here" in text]
    if left or said:
        raise LabError(f"kernels were compiled: {(left + said)[0]}")
    if lab.machine.show(UNIT, "MemoryDenyWriteExecute") != "yes":
        raise LabError("the unit allows new code in memory, though the package has compiled kernels")
    lab.figures["warm_ready_s"] = took
    return f"ready in {took:.1f} s, kernels: {_kernels(lab)}"


# --- failures of the process


def killed(lab: Lab) -> str:
    old = lab.pid()
    began = time.monotonic()
    lab.signal("KILL")
    wait_for("a new process", lambda: lab.pid() not in (0, old), SETTLE_S)
    lab.ready(SETTLE_S)
    lab.figures["ready_after_restart_s"] = time.monotonic() - began
    lab.answer()
    return f"ready after {lab.figures['ready_after_restart_s']:.1f} s"


def stalled_loop(lab: Lab) -> str:
    with lab.changed(f"[Service]\nEnvironment=PYTHONPATH={MOUNT}/stall\n{_hurry(lab)}"):
        return _watchdog(lab, lambda: lab.signal("USR1"))


def hanging_head(lab: Lab) -> str:
    """The event loop still turns, but no frame gets through the head."""
    module = STALL.replace("SECONDS", "5" if lab.quick else "limits.HEAD_STUCK")
    (lab.shared / "stall/sitecustomize.py").write_text(module)

    def hang() -> None:
        lab.signal("USR2")
        lab.put_frame()
        options = ("-s", "-m", "2", "-H", "Content-Type: image/jpeg", "--data-binary", f"@{FRAME}")
        lab.machine.run("curl", *options, f"{API}/v1/infer", check=False)

    with lab.changed(f"[Service]\nEnvironment=PYTHONPATH={MOUNT}/stall\n{_hurry(lab)}"):
        return _watchdog(lab, hang)


def stopped(lab: Lab) -> str:
    with lab.changed(f"[Service]\n{_hurry(lab)}"):
        return _watchdog(lab, lambda: lab.signal("STOP"))


# --- failures of the board


def full_disk(lab: Lab) -> str:
    return _starts_covered(lab, "size=64k", "head -c 1000000 /dev/zero >$1/fill")


def disk_fills(lab: Lab) -> None:
    """The disk becomes full while the service runs, and a restart finds it full."""
    with _covered(lab, "size=4m", ":"):
        lab.systemctl("start")
        lab.ready(SETTLE_S)
        for folder in (STATE, CACHE):
            lab.machine.run("sh", "-c", f"head -c 10000000 /dev/zero >{folder}/fill", check=False)
        lab.answer()
        lab.systemctl("restart")
        lab.ready(SETTLE_S)
        lab.answer()


def read_only_cache(lab: Lab) -> str:
    return _starts_covered(lab, "size=4m", "mount -o remount,ro $1")


def clock_of_1970(lab: Lab) -> str:
    """At boot the clock says 1970; it is set while the agent waits, which then goes on without a restart."""
    machine = lab.machine
    place = f"/etc/systemd/system/{UNIT}.d/lab-clock.conf"
    processor = machine.run("uname", "-m").stdout.strip()
    machine.write(CLOCK, "@1970-01-01 00:01:00\n")
    machine.write(place, FAKE_CLOCK.replace("MACHINE", processor))
    try:
        machine.off()
        took = machine.boot()
        wait_for("a word about the clock", lambda: "clock" in lab.says(), SETTLE_S * lab.patience)
        said, pid = lab.says(), lab.pid()
        if lab.health()[0] != 503:
            raise LabError("the agent is ready before its clock is set")
        machine.write(CLOCK, "+0\n")
        set_at = time.monotonic()
        lab.ready(SETTLE_S)
        lab.answer()
        if lab.pid() != pid or lab.restarts():
            raise LabError(f"the agent restarted instead of waiting for the clock ({said})")
        _no_longer_than(took, BOOT_S * lab.patience)
        return f"ready {time.monotonic() - set_at:.1f} s after it was set"
    finally:
        machine.run("rm", "-rf", place, CLOCK)
        machine.run("rmdir", f"/etc/systemd/system/{UNIT}.d", check=False)
        machine.run("systemctl", "daemon-reload")
        lab.systemctl("restart")
        lab.ready(SETTLE_S)


# --- the link


def absent_server(lab: Lab) -> str:
    """A boot without a server is not held up; the agent says once what it waits for, and gets ready."""
    lab.server.stop()
    lab.machine.off()
    took = lab.machine.boot()
    try:
        _no_longer_than(took, BOOT_S * lab.patience)
        wait_for("the wait for the server", lambda: lab.says().startswith("waiting"), SETTLE_S * lab.patience)
        time.sleep(10)  # several more attempts
        waits = [one for one in lab.journal() if "waiting for the server" in one[1]]
        if len(waits) != 1 or waits[0][0] != WARNING:
            raise LabError(
                f"the absent server is to be said once, as a warning, and was said {len(waits)} times: {waits[:3]}"
            )
        if lab.health()[0] != 503:
            raise LabError("/healthz says ready without a server")
    finally:
        lab.server.start()
        lab.ready(SETTLE_S)
    lab.answer()
    return f"booted in {took:.1f} s"


def lost_link(lab: Lab) -> str:
    """A cable that is pulled: said once, and so is its return."""
    cursor = lab.cursor()
    lab.network.pull()
    try:
        took = wait_for("not ready", lambda: lab.health()[0] == 503, SETTLE_S)
        time.sleep(2 if lab.quick else 10)
    finally:
        lab.network.plug_in()
        lab.ready(SETTLE_S)
    lab.answer()
    _once(lab, cursor)
    return f"noticed in {took:.1f} s"


def lost_server(lab: Lab) -> None:
    """A server that crashes and comes back: said once, and so is its return."""
    cursor = lab.cursor()
    lab.server.stop()
    try:
        wait_for("not ready", lambda: lab.health()[0] == 503, SETTLE_S)
        time.sleep(2 if lab.quick else 10)
    finally:
        lab.server.start()
        lab.ready(SETTLE_S)
    lab.answer()
    _once(lab, cursor)


def logs_command(lab: Lab) -> None:
    said = lab.machine.run(AGENT, "service", "logs").stdout
    if "the link to the server is back" not in said:
        raise LabError(f"`edge-agent service logs` does not show the link's return: {said[-300:]}")


# --- removal


def uninstall(lab: Lab) -> None:
    """Removal without --purge keeps settings and state."""
    lab.machine.run(AGENT, "service", "uninstall")
    for path in ("/etc/splitedge/agent.toml", "/etc/splitedge/token", CACHE):
        lab.machine.run("test", "-e", path)
    if lab.machine.run("systemctl", "cat", UNIT, check=False).returncode == 0:
        raise LabError("the unit is still there")
    lab.machine.run(AGENT, "service", "install", timeout=install.INSTALL_S)
    lab.ready(SETTLE_S)


# --- releases


def repair(lab: Lab) -> None:
    """The same command repairs a version of which a file is lost."""
    lab.machine.run("rm", f"/opt/splitedge/{lab.version()}/bin/edge-agent")
    install.by_installer(lab.machine, lab.server, lab.shared)
    lab.ready(SETTLE_S)
    lab.answer()


def upgrade(lab: Lab) -> str:
    began = time.monotonic()
    lab.machine.run("edge-agent", "service", "upgrade", lab.variant(BETTER), timeout=install.INSTALL_S)
    lab.figures["upgraded_s"] = time.monotonic() - began
    lab.ready(SETTLE_S)
    lab.answer()
    _runs(lab, BETTER)
    return f"in {lab.figures['upgraded_s']:.1f} s"


def forged_upgrade(lab: Lab) -> None:
    """An archive that another key signed is refused, and nothing in it runs."""
    archive = lab.shared / "variants" / Path(lab.variant(WORSE, broken=True)).name
    other = lab.server.folder / "other.pem"
    release.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(other))
    release.sign(archive, other)
    version, pid = lab.version(), lab.pid()
    done = lab.machine.run("edge-agent", "service", "upgrade", f"{MOUNT}/variants/{archive.name}", check=False)
    if done.returncode == 0 or "signature" not in done.stderr or (lab.version(), lab.pid()) != (version, pid):
        raise LabError(f"a forged archive was accepted: {done.stdout[-200:]} {done.stderr[-200:]}")


def failed_upgrade(lab: Lab) -> str:
    """A version that cannot start is rolled back."""
    bad = lab.variant(WORSE, broken=True)
    version = lab.version()
    done = lab.machine.run("edge-agent", "service", "upgrade", bad, check=False, timeout=install.INSTALL_S)
    told = re.search(rf"{re.escape(version)} runs again after ([\d.]+) s", done.stderr)
    if done.returncode == 0 or told is None:
        raise LabError(f"the command ended with status {done.returncode} and said: {done.stderr.strip()[-300:]}")
    lab.figures["rolled_back_s"] = float(told[1])
    lab.ready(1)
    lab.answer()
    _runs(lab, version)
    return f"rolled back in {lab.figures['rolled_back_s']:.1f} s"


def killed_upgrade(lab: Lab) -> str:
    """kill -9 of an upgrade, of its unit and of all that they started, or a power cut, at moments over its whole time.

    One of both versions works each time, and the next upgrade succeeds.
    """
    whole = lab.figures.get("upgraded_s", 20.0)
    few = lab.quick or lab.emulated  # each of them takes minutes under emulation
    moments = (0.3, 0.9) if few else (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
    for number, moment in enumerate(moments):
        old, new = lab.version(), f"0.9.{10 + number}"
        archive = lab.variant(new)
        command = lab.machine.command("edge-agent", "service", "upgrade", archive)
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        time.sleep(moment * whole)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        if number % 2:
            lab.machine.pull_plug()
            lab.machine.boot()
        else:
            lab.machine.run("systemctl", "kill", "--signal=KILL", "splitedge-agent-upgrade.service", check=False)
        wait_for("the end of the upgrade", lambda: not _under_way(lab), 120 * lab.patience)
        lab.ready(SETTLE_S)
        lab.answer()
        if lab.version() not in (old, new):
            raise LabError(f"{lab.version()} is installed, neither {old} nor {new}")
        _runs(lab, lab.version())
    lab.machine.run("edge-agent", "service", "upgrade", lab.variant(BEST), timeout=install.INSTALL_S)
    lab.ready(SETTLE_S)
    _runs(lab, BEST)
    kept = lab.machine.run("sh", "-c", "ls -d /opt/splitedge/[0-9]*").stdout.split()
    if len(kept) > 2:
        raise LabError(f"more than two versions are kept: {kept}")
    if lab.machine.path(str(SETTLE.path)).exists():
        raise LabError(f"{SETTLE.path} is left")
    return f"{len(moments)} moments"


def _under_way(lab: Lab) -> bool:
    """Whether an upgrade began and has not ended, or its unit runs or waits for its restart."""
    active = lab.machine.show(SETTLE.unit, "ActiveState")
    if active == "failed":
        raise LabError(f"{SETTLE.unit} failed: {lab.machine.show(SETTLE.unit, 'Result')}")
    return active != "inactive" or lab.machine.path("/opt/splitedge/upgrade.json").exists()


def purge(lab: Lab) -> str:
    install.remove_by_installer(lab.machine)
    return _nothing_left(lab)


def install_package(lab: Lab) -> None:
    install.by_deb(lab.machine, lab.server, lab.shared)
    lab.ready(SETTLE_S)
    lab.answer()


def remove_package(lab: Lab) -> None:
    """A package that is removed keeps its settings, and works when it is installed again."""
    lab.machine.run("dpkg", "--remove", "splitedge-agent", timeout=install.INSTALL_S)
    lab.machine.run("test", "-e", "/etc/splitedge/agent.toml")
    if lab.machine.run("systemctl", "is-active", UNIT, check=False).returncode == 0:
        raise LabError("the service still runs")
    install.by_deb(lab.machine, lab.server, lab.shared)
    lab.ready(SETTLE_S)


def purge_package(lab: Lab) -> str:
    lab.machine.run("rm", f"{SETTINGS}/profile.json")  # the lab's own file
    lab.machine.run("dpkg", "--purge", "splitedge-agent", timeout=install.INSTALL_S)
    return _nothing_left(lab, ("/var/lib/dpkg/", "/var/log/dpkg.log"))


def howto_pages(lab: Lab) -> str:
    """The commands of the how-to pages that name this lab, literally; only names and places are replaced."""
    home = "/srv/howto"
    lab.machine.run("mkdir", "-p", home)
    lab.machine.run("cp", "-r", f"{MOUNT}/release", home)
    for name, data in {"token": f"{lab.server.token}\n", "server.pem": lab.server.certificate}.items():
        lab.machine.write(f"{home}/{name}", data)
    lab.put_frame()
    lab.machine.run("cp", FRAME, f"{home}/photo.jpg")
    lab.machine.write(f"{SETTINGS}/profile.json", lab.server.profile)
    lab.machine.write(f"{SETTINGS}/agent.toml", install.DEMAND)
    # the container has no sudo; what it would run is run by root
    replaced = {"sudo ": "", "https://server.example:8470": lab.server.url, "lite0": MODEL, "flowers": MODEL}
    count = 0
    for page in ("README.md", *(f"docs/howto/{name}.md" for name in ("raspberry-pi", "jetson", "upgrade"))):
        text = (ROOT / page).read_text()
        for block in first_hour.blocks(page, text):
            if block.skip != "scripts/test-systemd runs this":
                continue
            script = block.text
            for old, new in replaced.items():
                script = script.replace(old, new)
            lab.machine.run("sh", "-ec", f"cd {home}\n{script}", timeout=install.INSTALL_S)
            count += len(block.commands())
    lab.ready(SETTLE_S)
    lab.machine.run("rm", "-r", home)
    install.remove_by_installer(lab.machine)
    _nothing_left(lab, ("/var/lib/dpkg/", "/var/log/dpkg.log"))
    return f"{count} commands"


# --- helpers


def _nothing_left(lab: Lab, ignored: tuple[str, ...] = ()) -> str:
    """Compare the system with what it was before. ``ignored``: beginnings of paths that others write."""
    lab.machine.off()
    left = [path for path in changed(lab.before, lab.machine.snapshot()) if not path.startswith(ignored)]
    lab.machine.boot()
    lab.figures["left_behind"] = lab.figures.get("left_behind", 0) + len(left)
    if left:
        raise LabError(f"left behind: {', '.join(left[:6])}")
    return "left behind: 0"


def _runs(lab: Lab, version: str) -> None:
    said = lab.machine.run("curl", "-s", f"{API}/v1/status").stdout
    if lab.version() != version or json.loads(said)["version"] != version:
        raise LabError(f"{lab.version()} is installed and {said[:40]} runs, not {version}")


def _status(lab: Lab, pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = lab.machine.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _kernels(lab: Lab) -> str:
    """The instruction set of the package's library that the service has loaded. Raises `LabError` unless it is right."""
    maps = lab.machine.run("cat", f"/proc/{lab.pid()}/maps").stdout
    loaded = sorted(set(re.findall(r"/kernels/libraries/(\S+)[.]so", maps)))
    wanted = emulated.ISA if lab.emulated else isa.ISA
    if loaded != [f"{lab.processor()}/{wanted}"]:
        raise LabError(f"the service runs the kernels of {loaded}, not of {wanted}")
    return wanted


def _exposure(lab: Lab, unit: str, most: float = EXPOSURE) -> float:
    said = lab.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    if found is None:
        raise LabError(f"systemd-analyze names no exposure: {said[-200:]}")
    if float(found[1]) > most:
        raise LabError(f"the exposure of {unit} is {found[1]}, above {most:g}")
    return float(found[1])


def _hurry(lab: Lab) -> str:
    """The lines of a drop-in that shorten the wait for the watchdog."""
    return "WatchdogSec=5\nTimeoutStopSec=3\n" if lab.quick else ""


def _watchdog(lab: Lab, break_it: Callable[[], object]) -> str:
    old, restarts, began = lab.pid(), lab.restarts(), time.monotonic()
    break_it()
    wait_for("a restart by the watchdog", lambda: lab.pid() not in (0, old), 180)
    lab.ready(SETTLE_S)
    if lab.restarts() != restarts + 1:
        raise LabError(f"systemd counts {lab.restarts() - restarts} restarts")
    lab.answer()
    return f"ready after {time.monotonic() - began:.1f} s"


@contextmanager
def _covered(lab: Lab, options: str, spoil: str) -> Iterator[None]:
    """State and cache are on small file systems in the block; ``spoil``: a shell command for each folder, $1."""
    lab.systemctl("stop")
    folders = (STATE, CACHE)
    try:
        for folder in folders:
            owner = lab.machine.path(folder).stat()
            mount = f"{options},mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
            lab.machine.run("mount", "-t", "tmpfs", "-o", mount, "tmpfs", folder)
            lab.machine.run("sh", "-c", f"{spoil} 2>&1 || true", "sh", folder)
        yield
    finally:
        lab.systemctl("stop")
        for folder in folders:
            lab.machine.run("umount", folder, check=False)
        lab.systemctl("start")
        lab.ready(SETTLE_S)


def _starts_covered(lab: Lab, options: str, spoil: str) -> str:
    with _covered(lab, options, spoil):
        lab.systemctl("start")
        took = lab.ready(SETTLE_S)
        lab.answer()
    return f"ready in {took:.1f} s"


def _once(lab: Lab, cursor: str) -> None:
    said = lab.journal(cursor)
    lost = [one for one in said if "link to the server is down" in one[1]]
    back = [one for one in said if "link to the server is back" in one[1]]
    if len(lost) != 1 or len(back) != 1:
        raise LabError(f"the loss was said {len(lost)} times and the return {len(back)} times, not once: {said[:6]}")
    if lost[0][0] != WARNING or back[0][0] <= WARNING:
        raise LabError(f"the priorities are {lost[0][0]} and {back[0][0]}")


def _no_longer_than(took: float, limit: float) -> None:
    if took > limit:
        raise LabError(f"the boot took {took:.1f} s, more than {limit:g}")


STEPS: Final = (
    Step("boot without splitedge", boot_bare, vital=True),
    Step("install-agent --offline", install_release, vital=True),
    Step("the service becomes ready", becomes_ready, vital=True),
    Step("a frame by the HTTP API", answers_frame),
    Step("a frame by `edge-agent infer`", infer_command),
    Step("edge-agent bench", bench_command),
    Step("edge-agent profile", profile_command),
    Step("systemd-analyze verify", verified_unit),
    Step("systemd-analyze security", exposure),
    Step("the sandbox of the process", confined_process),
    Step("the drop-in for cameras", camera),
    Step("unit of the server", server_unit),
    Step("a restart compiles nothing", compiles_nothing),
    Step("kill -9", killed),
    Step("a stalled event loop", stalled_loop),
    Step("a head that hangs", hanging_head),
    Step("SIGSTOP", stopped, long=True),
    Step("a full disk at start", full_disk),
    Step("a disk that fills up", disk_fills),
    Step("a read-only cache", read_only_cache),
    Step("a boot in 1970", clock_of_1970),
    Step("a boot without a server", absent_server),
    Step("a pulled cable", lost_link),
    Step("a server that crashes", lost_server),
    Step("edge-agent service logs", logs_command),
    Step("install-agent, again", repair),
    Step("uninstall, install again", uninstall),
    Step("upgrade", upgrade),
    Step("an upgrade with another key", forged_upgrade),
    Step("an upgrade that fails", failed_upgrade),
    Step("kill -9 of an upgrade", killed_upgrade),
    Step("install-agent --uninstall", purge),
    Step("install the Debian package", install_package),
    Step("remove the Debian package", remove_package, long=True),
    Step("purge the Debian package", purge_package),
    Step("commands of the how-to pages", howto_pages, long=True),
)
