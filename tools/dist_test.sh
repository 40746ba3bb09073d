#!/usr/bin/env bash
# Test on several GPUs or machines: MMDetection's installed tools/dist_test.sh, starting our test.py.
usage="usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]

Variables, as in MMDetection: NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500).
Uses the Python on PATH if it has mmdet and embedmask_mmdet, otherwise that of .venv, which \`make setup\` creates."
required=3
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"
# Sourced, so that its $0 is this file and it starts the test.py in this folder.
source "$installed_tools/dist_test.sh"
