#!/usr/bin/env bash
# ray.init() replaces a program's own SIGTERM handler, and ray.shutdown() does not give it back.
#
# Seen with ray 2.60.0 (Python 3.11, Linux, a local cluster, driver process): after ray.init(), the handler is Ray's, and the
# program's own is never called again, not even after ray.shutdown(): SIGTERM then ends the program at once. So a
# simulation that writes a checkpoint on SIGTERM, as batch systems send it before they kill, loses that when one of its
# libraries starts Ray. SIGINT is left as it was.
# What helps: keep signal.getsignal(signal.SIGTERM) before ray.init() and set it again afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check ray==2.60.0
cat > look.py <<'PY'
import os
import pathlib
import signal
import time

import ray


def save(number, frame):
    pathlib.Path("saved").touch()


def stop(number, frame):
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, stop)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print("SIGTERM is ours while Ray runs:", signal.getsignal(signal.SIGTERM) is save)
print("SIGINT is ours while Ray runs:", signal.getsignal(signal.SIGINT) is stop)
ray.shutdown()
print("SIGTERM is ours after shutdown:", signal.getsignal(signal.SIGTERM) is save, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
print("the program went on")
PY
export RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
status=0
venv/bin/python look.py >seen 2>/dev/null || status=$?
echo "the program ended with $status; our handler was called: $([ -e saved ] && echo True || echo False)" >>seen
cat seen
diff seen - <<'SEEN'
SIGTERM is ours while Ray runs: False
SIGINT is ours while Ray runs: True
SIGTERM is ours after shutdown: False
the program ended with 143; our handler was called: False
SEEN
