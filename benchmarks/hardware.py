"""What a result was measured on: as the load generator tells it."""

from simpleseg.bench.hardware import hardware as hardware
