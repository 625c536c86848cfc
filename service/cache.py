"""What the model said lately, by what it was asked: a text that comes again is not read again."""

from collections import OrderedDict

from service.messages import StoredReading


class ReadingCache:
    """The last ``size`` readings of one model, by `source_of`; who was asked for least lately goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._readings: OrderedDict[bytes, StoredReading] = OrderedDict()

    def get(self, source: bytes) -> StoredReading | None:
        """The reading of this source, whatever note and version it was of."""
        reading = self._readings.get(source)
        if reading:
            self._readings.move_to_end(source)
        return reading

    def put(self, reading: StoredReading) -> None:
        """Remember a reading under its source."""
        self._readings[reading.source] = reading
        self._readings.move_to_end(reading.source)
        while len(self._readings) > self._size:
            self._readings.popitem(last=False)
