"""The pairs of a log on Spark: its executors read the files, and the driver gets the pairs."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.sql import DataFrame, SparkSession

from model.data.engines.query import PERIOD, RELATED_PAIRS, SKIPPED_USERS, PairRules
from model.data.events import CLICKS, NOT_MET, EventTable
from model.data.files import DataError
from model.data.pairs import Pairs
from model.data.parquet_events import CHECK, MET, ParquetEvents
from model.data.rows import listed

JAVA = "Spark needs Java 17 or newer: apt-get install openjdk-17-jre-headless, or say in JAVA_HOME where one is"
NOT_STARTED = f"Spark did not start, and its Java says why above. {JAVA}"
ENDED = "the cluster does not answer, or ended the session; --conf spark.log.level=ERROR shows what it says"
# Of a wrong one Spark says so in a stack of Java.
_MASTER = re.compile(r"local(\[[^\]]+\])?|yarn|(spark|k8s)://.+")
# Types of columns, as Spark calls them, by our names.
_TYPES = {"user_id": ("string",), "note_id": ("string",), "event": ("string",)}
_WHOLE = ("tinyint", "smallint", "int", "bigint")
_SCHEMA = "user_id string, note_id string, event string, ts bigint"


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """`Engine` on a session of Spark; see `spark_engine`."""

    session: SparkSession

    def open(self, url: str) -> ParquetEvents:
        """A log in Parquet files which Spark reads: a file or a folder, at any URL that the session knows.

        Raises:
            DataError: if they are no events.
        """
        with _in_one_line():
            files = self.session.read.parquet(url)
            kinds = dict(files.dtypes)
            wrong = [name for name, allowed in {**_TYPES, "ts": _WHOLE}.items() if kinds.get(name) not in allowed]
            if wrong:
                raise DataError(
                    "the events need strings user_id, note_id and event, and whole numbers ts: "
                    f"{listed(wrong)} is missing or of another type"
                )
            files.createOrReplaceTempView("files")
            [(count, untimed, mistakes, newest)] = self.session.sql(CHECK).collect()
        if mistakes:
            kinds_of_events = listed((*CLICKS, *NOT_MET))
            raise DataError(
                f"{mistakes} events have no user_id, no note_id, or an event that is none of {kinds_of_events}"
            )
        if not count:
            raise DataError("there are no events")
        return ParquetEvents((url,), count, untimed, newest or 0)

    def related(self, events: EventTable | ParquetEvents, rules: PairRules, within: Set[str] | None) -> Pairs:
        """See `Engine`."""
        with _in_one_line():
            self._log(events).createOrReplaceTempView("log")
            self._candidates(within).createOrReplaceTempView("candidates")
            bounds = asdict(rules)
            pairs = self.session.sql(RELATED_PAIRS, bounds).toArrow()
            [(skipped,)] = self.session.sql(SKIPPED_USERS, {name: bounds[name] for name in PERIOD}).collect()
        return Pairs(
            tuple(pairs["note"].to_pylist()),
            tuple(pairs["related"].to_pylist()),
            pairs["score"].to_numpy(),
            pairs["users"].to_numpy(),
            skipped,
        )

    def _log(self, events: EventTable | ParquetEvents) -> DataFrame:
        """The columns of ``log``. A note is its id: numbers would have to be given out by one executor."""
        if isinstance(events, ParquetEvents):
            files = self.session.read.schema(_SCHEMA).parquet(*map(_url, events.files))
            files.createOrReplaceTempView("files")
            return self.session.sql(MET).withColumnsRenamed({"user_id": "user_code", "note_id": "note"})
        notes = pa.array(events.note_ids, pa.string()).take(pa.array(events.notes))
        columns = {"user_code": events.users, "note": notes, "ts": events.ts, "clicked": events.clicked}
        return self.session.createDataFrame(pa.table(columns))

    def _candidates(self, within: Set[str] | None) -> DataFrame:
        if within is None:
            return self.session.sql("SELECT DISTINCT note FROM log")
        return self.session.createDataFrame(pa.table({"note": pa.array(within, pa.string())}))


@contextmanager
def spark_engine(master: str | None = None, conf: Mapping[str, str] | None = None) -> Iterator[SparkEngine]:
    """An engine on a session that ends with the block, or on the one that runs already, which stays as it is.

    Args:
        master: as of ``spark-submit``; None takes what that has set, else all cores of this machine.
        conf: properties of Spark.

    Raises:
        ValueError: if Spark does not start.
    """
    if master is not None and not _MASTER.fullmatch(master):
        raise ValueError("a master is local[4], spark://host:7077, k8s://https://host:443 or yarn")
    running = SparkSession.getActiveSession()
    if running:
        yield SparkEngine(running)
        return
    # A command started by spark-submit has its JVM.
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not _has_java():
        raise ValueError(JAVA)
    chosen = {
        "spark.app.name": "notellm pairs",
        "spark.driver.maxResultSize": "0",  # the driver gets all pairs
        "spark.log.level": "FATAL",  # what fails is said in a line, and not in stacks of Java
        "spark.sql.ansi.enabled": "true",  # an overflow is an error
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        **({"spark.master": master} if master else {}),
        **(conf or {}),
    }
    PySparkLogger.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)
    with _in_one_line():
        session = SparkSession.builder.config(map=dict[str, Any](chosen)).getOrCreate()
    try:
        yield SparkEngine(session)
    finally:
        session.stop()


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which(str(Path(home) / "bin" / "java") if home else "java") is not None


def _url(file: str) -> str:
    """A path as Spark takes it: of this machine whatever its default is, and no pattern."""
    return file if "://" in file else "file://" + re.sub(r"([][{}*?\\])", r"\\\1", file)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Errors of Spark, which come with stacks of Java, as ValueError."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        if "JAVA_GATEWAY" in text:
            raise ValueError(NOT_STARTED) from None
        raise ValueError(f"Spark: {ENDED if 'stopped SparkContext' in text else reason(text)}") from None


def reason(text: str) -> str:
    """Of a stack, what caused the first error of it; else the first line."""
    lines = [line.strip(": ") for line in text.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    # Py4J's first line says which call it was, and the second what happened.
    called = len(lines) > 1 and lines[0].startswith("An error occurred while calling")
    return causes[-1] if causes else lines[called]
