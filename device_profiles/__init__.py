"""What a board can do: the profile's schema, its measurement, predictions from it, and a table of it."""

from device_profiles.measure import measure
from device_profiles.render import table
from device_profiles.schema import DeviceProfile, from_dict, load, save, to_dict

__all__ = ["DeviceProfile", "from_dict", "load", "measure", "save", "table", "to_dict"]
