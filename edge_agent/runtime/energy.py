"""What frames cost in energy, where the board has a sensor: its joules while frames were under way, over the frames."""

from __future__ import annotations

import asyncio
import threading

from device_profiles import power
from edge_agent.runtime.queue_limit import Admission
from splitedge import limits


class FrameEnergy:
    """Samples ``meter`` while an agent runs. The energy of each interval counts for frames by the share of it in which there were any.

    It is the energy of all that the sensor sees, what the board draws when idle included, and nothing between frames.
    """

    def __init__(self, meter: power.PowerMeter, admission: Admission) -> None:
        self.sensor = meter.name
        self.frames_j = 0.0
        self._meter, self._admission = meter, admission
        self._busy_s = admission.busy_s
        self._lock = threading.Lock()  # a cancelled `run` leaves an update behind that still reads the sensor
        meter.start()

    def update(self) -> None:
        """Count up to now; reads the sensor, so it may block for some milliseconds."""
        with self._lock:
            joules, seconds = self._meter.joules, self._meter.seconds
            self._meter.sample()
            joules, seconds = self._meter.joules - joules, self._meter.seconds - seconds
            if seconds > 0:  # the sensor answered: this interval began when it last did
                busy_s = self._admission.busy_s
                self.frames_j += joules * min(1.0, (busy_s - self._busy_s) / seconds)
                self._busy_s = busy_s

    async def run(self) -> None:
        """Update for ever."""
        while True:
            await asyncio.sleep(limits.POWER_PERIOD)
            await asyncio.to_thread(self.update)
