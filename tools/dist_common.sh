# Sourced by dist_train.sh and dist_test.sh: checks their arguments, puts the right Python first on PATH, and sets
# installed_tools. Reads $usage, and $required: the number of required arguments, the last of which is GPUS.
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "$(basename "$0"): error: $1" >&2
    exit 2
}

if [[ " $* " == *" -h "* || " $* " == *" --help "* ]]; then
    echo "$usage"
    exit 0
fi
if (($# < required)); then
    echo "$usage" >&2
    exit 2
fi
[[ "${!required}" =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a number of GPUs on this machine, not '${!required}'"

for environment in "" "$tools/../.venv/bin:"; do
    installed_tools="$(PATH="$environment$PATH" python "$tools/environment.py" 2>/dev/null)"
    if [[ -n "$installed_tools" ]]; then
        export PATH="$environment$PATH"
        break
    fi
done
[[ -n "$installed_tools" ]] || fail "no python with mmdet and embedmask_mmdet. Activate the environment that has them, or run 'make setup' in $(dirname "$tools")"

checks='import sys; sys.argv[0] = sys.argv.pop(1)
from embedmask_mmdet.cli.launch import find_checkpoint, find_config
print(find_config(sys.argv[1]))
for checkpoint in sys.argv[2:]: print(find_checkpoint(checkpoint))'
found="$(python -c "$checks" "$0" "${@:1:required-1}")" || exit 2

# The installed scripts do not quote their arguments: split words only at line breaks, and expand no patterns.
IFS=$'\n'
set -f
set -- $found "${@:required}"
