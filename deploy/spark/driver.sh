#!/bin/sh
# As `driver ...`, what Spark on Kubernetes calls in the pod of a driver; anything else is a command of notellm.
set -eu
if [ "${1:-}" = driver ]; then
  shift
  exec "$SPARK_HOME/bin/spark-submit" --deploy-mode client --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" "$@"
fi
exec notellm "$@"
