"""What the model said lately, by what it was asked: a text that comes again is not read again."""

from collections import OrderedDict

from service.store.records import StoredPrediction


class PredictionCache:
    """The last ``size`` readings of one model, by `source_of`; who was asked for least lately goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._readings: OrderedDict[bytes, StoredPrediction] = OrderedDict()

    def get(self, source: bytes) -> StoredPrediction | None:
        """The reading of this source, whatever note and version it was of."""
        prediction = self._readings.get(source)
        if prediction:
            self._readings.move_to_end(source)
        return prediction

    def put(self, prediction: StoredPrediction) -> None:
        """Remember a reading under its source."""
        self._readings[prediction.source] = prediction
        self._readings.move_to_end(prediction.source)
        while len(self._readings) > self._size:
            self._readings.popitem(last=False)
