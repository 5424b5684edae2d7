"""What to measure about samples."""

from rtbjax.metrics import calibration as calibration
from rtbjax.metrics import distances as distances
from rtbjax.metrics import text as text
