"""Energy of frames on a board with a power sensor: the sensor's joules while frames were in progress, divided among
them.
"""

from __future__ import annotations

import asyncio
import threading

from device_profiles import power
from edge_agent.runtime.queue_limit import QueueLimit
from splitedge import limits


class FrameEnergy:
    """Samples ``meter`` while an agent runs.

    Frames get the share of each interval's energy in which at least one was in progress.

    The energy is that of everything behind the sensor, the board's idle power included. Nothing is counted between
    frames.
    """

    def __init__(self, meter: power.PowerMeter, queue: QueueLimit) -> None:
        self.sensor = meter.name
        self.frames_j = 0.0
        self._meter, self._queue = meter, queue
        self._busy_s = queue.busy_s
        self._lock = threading.Lock()  # a cancelled `run` leaves an update behind that still reads the sensor
        meter.start()

    def update(self) -> None:
        """Add the energy since the last update. Reads the sensor, so it may block for some milliseconds."""
        with self._lock:
            joules, seconds = self._meter.joules, self._meter.seconds
            self._meter.sample()
            joules, seconds = self._meter.joules - joules, self._meter.seconds - seconds
            if seconds > 0:  # the sensor answered; the interval began at its last answer
                busy_s = self._queue.busy_s
                self.frames_j += joules * min(1.0, (busy_s - self._busy_s) / seconds)
                self._busy_s = busy_s

    async def run(self) -> None:
        """Update until cancelled."""
        while True:
            await asyncio.sleep(limits.POWER_PERIOD)
            await asyncio.to_thread(self.update)
