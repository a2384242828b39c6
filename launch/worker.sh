#!/usr/bin/env bash
# Trains, and tells a run that was stopped from one that has finished.
#
#   bash launch/worker.sh CONFIG [--option value ...]      the same on every worker
#
# After SIGTERM train.py saves and exits with 0. A scheduler would take that for the end, so that
# this exits with 143 then, and it starts the run again.
set -u

python train.py "$@" &
child=$!
stopped=
trap 'stopped=yes; kill -TERM "$child" 2>/dev/null' TERM
wait "$child"
status=$?
if [ -n "$stopped" ]; then
  wait "$child"  # The first wait ended with the signal; the run is still saving.
  exit 143
fi
exit "$status"
