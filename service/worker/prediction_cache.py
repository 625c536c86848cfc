"""A cache of predictions by source: the same text in another note or version needs no forward pass."""

from collections import OrderedDict
from collections.abc import Iterable

from service.store.records import StoredPrediction


class PredictionCache:
    """Up to ``size`` predictions of one model, by `source_of`; the least recently used is evicted. It starts with
    those that are ``known``."""

    def __init__(self, size: int, known: Iterable[StoredPrediction] = ()) -> None:
        self._size = size
        self._predictions: OrderedDict[bytes, StoredPrediction] = OrderedDict()
        for prediction in known:
            self.put(prediction)

    def get(self, source: bytes) -> StoredPrediction | None:
        """The prediction for this source, of any note and version."""
        prediction = self._predictions.get(source)
        if prediction:
            self._predictions.move_to_end(source)
        return prediction

    def put(self, prediction: StoredPrediction) -> None:
        """Cache a prediction under its source."""
        self._predictions[prediction.source] = prediction
        self._predictions.move_to_end(prediction.source)
        while len(self._predictions) > self._size:
            self._predictions.popitem(last=False)
