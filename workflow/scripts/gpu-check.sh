#!/usr/bin/env bash
# What a machine with a GPU shall run first, in order of worth: does it compute what the CPU computes, how fast are the
# training steps, and a preset from data to tables. Each part has a time limit and a log below results/gpu-check/.
#
#     bash workflow/scripts/gpu-check.sh [PRESET [TARGET ...]]
#
# PYTHON, SNAKEMAKE: the commands to use (default: those of .venv, else of PATH). PRESET: a file of workflow/presets,
# without .yaml; left out, nothing is trained. TARGET: what is made of it, tables by default. MINUTES: the limit of the
# preset's run, 60 by default.
set -u
cd "$(dirname "$0")/../.."
[ -x .venv/bin/python ] && PATH="$PWD/.venv/bin:$PATH"
PYTHON=${PYTHON:-python}
SNAKEMAKE=${SNAKEMAKE:-snakemake}
LOGS=results/gpu-check
mkdir -p "$LOGS"
failed=0

part() { # NAME SECONDS COMMAND...
	local name=$1 limit=$2 began=$SECONDS status
	shift 2
	timeout --signal=TERM --kill-after=30 "$limit" "$@" >"$LOGS/$name.log" 2>&1
	status=$?
	case $status in
	0) echo "$name: passed in $((SECONDS - began)) s" ;;
	124 | 137) echo "$name: stopped at its limit of $limit s" ;;
	*) echo "$name: failed (status $status) after $((SECONDS - began)) s" ;;
	esac
	[ $status -eq 0 ] || failed=1
	tail -n 25 "$LOGS/$name.log" | sed 's/^/    /'
}

$PYTHON - <<'PY' || exit 2
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no CUDA device here: there is nothing to check.")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PY

part devices 300 "$PYTHON" -m pytest tests/test_devices.py tests/test_graph.py
part bench 300 "$PYTHON" -m tests.benchmarks.bench_gpu
if [ $# -gt 0 ]; then
	preset=$1
	shift
	part "$preset" $((60 * ${MINUTES:-60})) "$SNAKEMAKE" --cores all --configfile "workflow/presets/$preset.yaml" -- "${@:-tables}"
fi
exit $failed
